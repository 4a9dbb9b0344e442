import copy

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from activation_dataset.prompts import Prompt
from corpus.augment import AugmentationPlan, augment
from corpus.prompt import TEST_PAIR, render
from corpus.task import Document, Pair, RejectedTask, Task
from corpus.template import load_template, shipped_templates
from qwen.source import open_model
from transforms.read_tasks import REJECTED
from transforms.tokenize_tasks import LengthLimit, TokenizeTasks, prompts_of, tokenize

DIGITS, CHAT = load_template("digits"), load_template("digits-chat")
NO_LIMIT = LengthLimit(10_000, "reject")
TASK = Task(
    "t",
    "folder/a.json",
    train=(Pair(((1, 2), (3, 4)), ((5,),)),),
    test=(Pair(((6,),), None), Pair(((7, 7, 7),), None)),
)
TEXT = Document("d", "b.jsonl", "Grids, 42.")
SAID = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why, 42?"})
TALK = Document("m", "b.jsonl", None, SAID)


@pytest.fixture(scope="module")
def tokenizer():
    return open_model("random:tiny").tokenizer()


def accepted(item, template, tokenizer, limit=NO_LIMIT) -> list[Prompt]:
    found = list(prompts_of(item, template, tokenizer, limit))
    prompts = [prompt for prompt in found if isinstance(prompt, Prompt)]
    assert prompts == found
    return prompts


def test_a_longer_prompt_is_rejected_or_loses_its_end(tokenizer):
    """Each test input is judged by itself."""
    first, second = accepted(TASK, DIGITS, tokenizer)
    length = first.num_tokens
    kept, rejected = prompts_of(TASK, DIGITS, tokenizer, LengthLimit(length, "reject"))
    assert isinstance(kept, Prompt)
    assert isinstance(rejected, RejectedTask)
    assert np.array_equal(kept.token_ids, first.token_ids)
    assert (rejected.source, rejected.task_id) == ("folder/a.json", "t")
    assert rejected.reason == "too_long"
    for part in (second.sample_id, f"{second.num_tokens} tokens", f"allows {length}", "--overlen"):
        assert part in rejected.detail
    _, cut = accepted(TASK, DIGITS, tokenizer, LengthLimit(length, "truncate"))
    assert np.array_equal(cut.token_ids, second.token_ids[:length])
    assert np.array_equal(cut.cells, second.cells[:length])


@pytest.mark.parametrize(
    ("chat_template", "why"),
    [
        (None, "no chat template; use a prompt template with chat ="),
        ("{{ raise_exception('System role') }}", "refuses the messages (system, user): System ro"),
        ("{{ messages[0]['content'] + 1 }}", "refuses the messages (system, user): "),
        ("{% if %}", "refuses the messages (system, user): "),
    ],
    ids=["absent", "refusal", "type error", "syntax error"],
)
def test_messages_that_cannot_be_a_chat_are_rejected(tokenizer, chat_template, why: str):
    other = copy.deepcopy(tokenizer)
    other.chat_template = chat_template
    (rejected,) = prompts_of(TALK, DIGITS, other, NO_LIMIT)
    assert isinstance(rejected, RejectedTask)
    assert (rejected.task_id, rejected.reason) == ("m", "chat_template")
    assert rejected.detail.startswith("b.jsonl#m: ")
    assert why in rejected.detail
    assert tokenize(render(DIGITS, TEXT), other)[0].any(), "a text needs no chat template"


@pytest.mark.parametrize("name", shipped_templates())
def test_every_cell_of_the_prompt_is_traced_to_its_token(tokenizer, name: str):
    """The numbers of example, role, row and column, and the color, of each cell of `TASK`."""
    shown = {(0, 0, 0, 0): 1, (0, 0, 0, 1): 2, (0, 0, 1, 0): 3, (0, 0, 1, 1): 4, (0, 1, 0, 0): 5}
    tests = [{(TEST_PAIR, 0, 0, 0): 6}, {(TEST_PAIR, 0, 0, column): 7 for column in range(3)}]
    for test, prompt in zip(tests, accepted(TASK, load_template(name), tokenizer), strict=True):
        found = {
            tuple(cell): int(tokenizer.decode([token_id]))
            for token_id, cell in zip(prompt.token_ids, prompt.cells.tolist(), strict=True)
            if cell != [-1] * 4
        }
        assert found == shown | test


def test_a_document_shows_no_cells(tokenizer):
    for template, begin in ((DIGITS, "Grids, 42."), (CHAT, "<|im_start|>user\nGrids, 42.")):
        (prompt,) = accepted(TEXT, template, tokenizer)
        assert tokenizer.decode(prompt.token_ids).startswith(begin)
        assert prompt.cells.tolist() == [[-1] * 4] * prompt.num_tokens


def test_variants_of_tasks_are_samples_and_what_is_rejected_is_apart():
    plan = AugmentationPlan(50, seed=0, keep_background=True)
    dot = Task("dot", "a.json", (Pair(((1,),), ((1,),)),), (Pair(((1,),), None),))
    variants = [
        variant
        for task in (TASK, dot)
        for variant in augment(task, plan)
        if isinstance(variant, Task)
    ]
    ids = [each.sample_id(index) for each in variants for index in range(len(each.test))]
    assert len({*ids}) == 2 * 50 + 9
    items = [TASK, dot, TEXT, TALK, Document("e", "b.jsonl", "")]
    with beam.Pipeline("FnApiRunner") as pipeline:
        transform = TokenizeTasks("random:tiny", DIGITS, NO_LIMIT, plan)
        result = pipeline | beam.Create(items) | transform
        found = result.prompts | "Id" >> beam.Map(lambda prompt: prompt.sample_id)
        assert_that(found, equal_to([*ids, "b.jsonl#d", "b.jsonl#m"]), "prompts")
        reasons = result[REJECTED] | "Why" >> beam.Map(lambda item: (item.task_id, item.reason))
        rejected = [("dot", "too_few_variants"), ("e", "no_tokens")]
        assert_that(reasons, equal_to(rejected), "rejected")
