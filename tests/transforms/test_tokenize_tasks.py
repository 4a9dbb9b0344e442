import copy
import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from activation_dataset.prompts import Prompt
from corpus.augment import Augmentation, AugmentationPlan, apply, augment
from corpus.prompt import TEST_PAIR, render
from corpus.task import Document, Message, Pair, RejectedTask, Task
from corpus.template import load_template, shipped_templates
from qwen.source import open_model
from transforms.read_tasks import REJECTED
from transforms.tokenize_tasks import (
    LengthLimit,
    TokenizeTasks,
    _Tokenize,
    prompts_of,
    tokenize,
)

DIGITS, CHAT = load_template("digits"), load_template("digits-chat")
NO_LIMIT = LengthLimit(10_000, "reject")
TASK = Task(
    "t",
    "folder/a.json",
    train=(Pair(((1, 2), (3, 4)), ((5,),)),),
    test=(Pair(((6,),), None), Pair(((7, 7, 7),), None)),
)
TEXT = Document("d", "b.jsonl", "Grids, 42.")
TALK = Document("m", "b.jsonl", None, (Message("system", "Be brief."), Message("user", "Why, 42?")))


@pytest.fixture(scope="module")
def tokenizer():
    return open_model("random:tiny").tokenizer()


def accepted(item, template, tokenizer, limit=NO_LIMIT) -> list[Prompt]:
    found = list(prompts_of(item, template, tokenizer, limit))
    prompts = [prompt for prompt in found if isinstance(prompt, Prompt)]
    assert prompts == found
    return prompts


def test_every_test_input_is_a_sample(tokenizer):
    prompts = accepted(TASK, DIGITS, tokenizer)
    assert [each.sample_id for each in prompts] == ["folder/a.json#t/0", "folder/a.json#t/1"]
    for index, prompt in enumerate(prompts):
        assert (prompt.task_id, str(prompt.token_ids.dtype)) == ("t", "int32")
        assert tokenizer.decode(prompt.token_ids) == render(DIGITS, TASK, index).text


def test_a_text_is_tokenized_unchanged(tokenizer):
    (prompt,) = accepted(TEXT, DIGITS, tokenizer)
    assert (prompt.sample_id, prompt.task_id) == ("b.jsonl#d", "d")
    assert tokenizer.decode(prompt.token_ids) == "Grids, 42."


@pytest.mark.parametrize("template", [DIGITS, CHAT], ids=["plain", "chat"])
def test_messages_go_through_the_chat_template(tokenizer, template):
    (prompt,) = accepted(TALK, template, tokenizer)
    assert tokenizer.decode(prompt.token_ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy, 42?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert list(prompt.token_ids).count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    replied = dataclasses.replace(TALK, messages=(*TALK.messages, Message("assistant", "So.")))
    (prompt,) = accepted(replied, template, tokenizer)
    assert tokenizer.decode(prompt.token_ids).endswith("<|im_start|>assistant\nSo.<|im_end|>\n")


def test_a_chat_template_makes_a_conversation_of_a_task(tokenizer):
    (prompt, _) = accepted(TASK, CHAT, tokenizer)
    text = tokenizer.decode(prompt.token_ids)
    assert text.startswith("<|im_start|>system\nYou solve puzzles")
    assert text.endswith("Input:\n6\nOutput:\n<|im_end|>\n<|im_start|>assistant\n")


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


def test_a_prompt_without_tokens_is_rejected(tokenizer):
    (rejected,) = prompts_of(Document("d", "b.jsonl", ""), DIGITS, tokenizer, NO_LIMIT)
    assert isinstance(rejected, RejectedTask)
    assert (rejected.task_id, rejected.reason) == ("d", "no_tokens")


@pytest.mark.parametrize(
    ("chat_template", "why"),
    [
        (None, "no chat template; use a prompt template with chat ="),
        ("{{ raise_exception('System role') }}", "refuses the messages (system, user): System ro"),
        ("{{ messages[0]['content'] + 1 }}", "refuses the messages (system, user): "),
        ("{{ messages[0].absent.field }}", "refuses the messages (system, user): "),
        ("{% if %}", "refuses the messages (system, user): "),
    ],
    ids=["absent", "refusal", "type error", "undefined", "syntax error"],
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


def test_a_chat_template_that_changes_the_text_of_grids_is_refused(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ messages[-1]['content'] | upper | replace('\\n', ' ') }}"
    rejected, _ = prompts_of(TASK, CHAT, other, NO_LIMIT)
    assert isinstance(rejected, RejectedTask)
    assert (rejected.task_id, rejected.reason) == ("t", "chat_template")
    assert "changed the text of the user's message" in rejected.detail


@pytest.mark.parametrize("name", shipped_templates())
def test_every_cell_of_the_prompt_is_traced_to_its_token(tokenizer, name: str):
    for index, prompt in enumerate(accepted(TASK, load_template(name), tokenizer)):
        assert prompt.cells.shape == (prompt.num_tokens, 4)
        found = {
            tuple(cell): int(tokenizer.decode([token_id]))
            for token_id, cell in zip(prompt.token_ids, prompt.cells.tolist(), strict=True)
            if cell != [-1] * 4
        }
        (example,) = TASK.train
        grids = {
            (0, 0): example.input,
            (0, 1): example.output,
            (TEST_PAIR, 0): TASK.test[index].input,
        }
        assert found == {
            (*where, row, column): cell
            for where, grid in grids.items()
            for row, cells in enumerate(grid or ())
            for column, cell in enumerate(cells)
        }


def test_the_cells_of_a_variant_are_those_of_its_own_grids(tokenizer):
    variant = apply(TASK, Augmentation(1, (0, 2, 1, *range(3, 10)), (0,)))
    prompt, _ = accepted(variant, DIGITS, tokenizer)
    # [[1, 2], [3, 4]] turned anticlockwise, with 1 and 2 exchanged.
    tokens = prompt.token_ids[(prompt.cells[:, 0] == 0) & (prompt.cells[:, 1] == 0)]
    assert [tokenizer.decode([token]) for token in tokens] == ["1", "4", "2", "3"]


def test_a_document_shows_no_cells(tokenizer):
    for item, template in ((TEXT, DIGITS), (TALK, DIGITS), (TEXT, CHAT)):
        (prompt,) = accepted(item, template, tokenizer)
        assert prompt.cells.tolist() == [[-1] * 4] * prompt.num_tokens


def test_bundles_that_start_together_load_one_tokenizer(checkpoint: Path, tmp_path: Path):
    model = str(shutil.copytree(checkpoint, tmp_path / "model"))
    together = Barrier(8)

    def bundle(_: int) -> int:
        do_fn = _Tokenize(model, DIGITS, NO_LIMIT, None)
        together.wait()
        do_fn.setup()
        assert len(list(do_fn.process(TASK))) == 2
        return id(do_fn._tokenizer)

    with ThreadPoolExecutor(8) as threads:
        assert len({*threads.map(bundle, range(8))}) == 1


def run(items: list, limit: LengthLimit, augmentation: AugmentationPlan | None, ids, rejected):
    with beam.Pipeline("FnApiRunner") as pipeline:
        transform = TokenizeTasks("random:tiny", DIGITS, limit, augmentation)
        result = pipeline | beam.Create(items) | transform
        found = result.prompts | "Id" >> beam.Map(lambda prompt: prompt.sample_id)
        assert_that(found, equal_to(ids), "prompts")
        reasons = result[REJECTED] | "Why" >> beam.Map(lambda item: (item.task_id, item.reason))
        assert_that(reasons, equal_to(rejected), "rejected")


def test_the_pipeline_parts_prompts_from_rejected_tasks(tokenizer):
    limit = LengthLimit(accepted(TASK, DIGITS, tokenizer)[0].num_tokens, "reject")
    ids, rejected = ["folder/a.json#t/0", "b.jsonl#d"], [("t", "too_long"), ("m", "too_long")]
    run([TASK, TEXT, TALK], limit, None, ids, rejected)


def test_variants_of_tasks_are_samples_and_missing_ones_are_reported():
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
    run([TASK, dot, TEXT], NO_LIMIT, plan, [*ids, "b.jsonl#d"], [("dot", "too_few_variants")])
