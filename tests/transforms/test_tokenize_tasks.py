import copy
import dataclasses

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
    chat_text,
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
    first, second = accepted(TASK, DIGITS, tokenizer)
    assert (first.sample_id, second.sample_id) == ("folder/a.json#t/0", "folder/a.json#t/1")
    assert first.task_id == second.task_id == "t"
    for index, prompt in enumerate((first, second)):
        assert prompt.token_ids.dtype == np.int32
        assert tokenizer.decode(prompt.token_ids) == render(DIGITS, TASK, index).text


def test_every_cell_is_a_token(tokenizer):
    (prompt, _) = accepted(TASK, DIGITS, tokenizer)
    cells = [token for token in prompt.token_ids if tokenizer.decode([token]).isdigit()]
    assert tokenizer.decode(cells) == "123456"


def test_a_text_is_tokenized_as_it_is(tokenizer):
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


def test_a_reply_that_is_given_is_not_opened_again(tokenizer):
    talk = dataclasses.replace(TALK, messages=(*TALK.messages, Message("assistant", "So.")))
    (prompt,) = accepted(talk, DIGITS, tokenizer)
    assert tokenizer.decode(prompt.token_ids).endswith("<|im_start|>assistant\nSo.<|im_end|>\n")


def test_a_chat_template_makes_a_conversation_of_a_task(tokenizer):
    text = chat_text(render(CHAT, TASK, 0), tokenizer)
    assert text.startswith("<|im_start|>system\nYou solve puzzles")
    assert text.endswith("Input:\n6\nOutput:\n<|im_end|>\n<|im_start|>assistant\n")
    (prompt, _) = accepted(TASK, CHAT, tokenizer)
    assert tokenizer.decode(prompt.token_ids) == text


def test_the_longest_prompt_allowed_is_accepted(tokenizer):
    (prompt,) = accepted(TEXT, DIGITS, tokenizer)
    length = len(prompt.token_ids)
    (whole,) = accepted(TEXT, DIGITS, tokenizer, LengthLimit(length, "reject"))
    assert np.array_equal(whole.token_ids, prompt.token_ids)
    (rejected,) = prompts_of(TEXT, DIGITS, tokenizer, LengthLimit(length - 1, "reject"))
    assert rejected == RejectedTask(
        "b.jsonl",
        "d",
        "too_long",
        f"b.jsonl#d: the prompt has {length} tokens, --max_length allows {length - 1}; raise it, "
        "or keep the beginning with --overlength=truncate",
    )


def test_truncating_keeps_the_beginning(tokenizer):
    (whole,) = accepted(TEXT, DIGITS, tokenizer)
    (prompt,) = accepted(TEXT, DIGITS, tokenizer, LengthLimit(2, "truncate"))
    assert np.array_equal(prompt.token_ids, whole.token_ids[:2])


def test_each_test_input_is_judged_by_itself(tokenizer):
    first, second = accepted(TASK, DIGITS, tokenizer)
    limit = LengthLimit(len(first.token_ids), "reject")
    kept, rejected = prompts_of(TASK, DIGITS, tokenizer, limit)
    assert isinstance(kept, Prompt)
    assert kept.sample_id == first.sample_id
    assert isinstance(rejected, RejectedTask)
    assert (rejected.task_id, rejected.reason) == ("t", "too_long")
    assert second.sample_id in rejected.detail


def test_a_prompt_without_tokens_is_rejected(tokenizer):
    (rejected,) = prompts_of(Document("d", "b.jsonl", ""), DIGITS, tokenizer, NO_LIMIT)
    assert rejected == RejectedTask(
        "b.jsonl", "d", "no_tokens", "b.jsonl#d: the prompt has no tokens"
    )


@pytest.mark.parametrize(
    ("chat_template", "why"),
    [
        (None, "the model's tokenizer has no chat template; use a prompt template with chat ="),
        (
            "{{ raise_exception('System role not supported') }}",
            "refuses the messages (system, user): System role not supported",
        ),
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
    assert (rejected.source, rejected.task_id) == ("b.jsonl", "m")
    assert rejected.reason == "chat_template"
    assert rejected.detail.startswith("b.jsonl#m: ")
    assert why in rejected.detail
    assert tokenize(render(DIGITS, TEXT), other)[0].any(), "a text needs no chat template"


def test_the_pipeline_parts_prompts_from_rejected_tasks(tokenizer):
    longest = len(accepted(TASK, DIGITS, tokenizer)[0].token_ids)
    with beam.Pipeline("FnApiRunner") as pipeline:
        result = (
            pipeline
            | beam.Create([TASK, TEXT, TALK])
            | TokenizeTasks("random:tiny", DIGITS, LengthLimit(longest, "reject"))
        )
        ids = result.prompts | "Id" >> beam.Map(lambda prompt: prompt.sample_id)
        assert_that(ids, equal_to(["folder/a.json#t/0", "b.jsonl#d"]), "prompts")
        rejected = result[REJECTED] | "Why" >> beam.Map(lambda item: (item.task_id, item.reason))
        assert_that(rejected, equal_to([("t", "too_long"), ("m", "too_long")]), "rejected")


@pytest.mark.parametrize("name", shipped_templates())
def test_every_cell_of_the_prompt_is_traced_to_its_token(tokenizer, name: str):
    first, second = accepted(TASK, load_template(name), tokenizer)
    for prompt, test_input in ((first, TASK.test[0].input), (second, TASK.test[1].input)):
        assert prompt.cells.dtype == np.int16
        assert prompt.cells.shape == (prompt.num_tokens, 4)
        found = {}
        for token_id, cell in zip(prompt.token_ids, prompt.cells.tolist(), strict=True):
            if cell != [-1] * 4:
                found[tuple(cell)] = int(tokenizer.decode([token_id]))
        expected: dict[tuple[int, ...], int] = {}
        (example,) = TASK.train
        assert example.output is not None
        for where, grid in (
            ((0, 0), example.input),
            ((0, 1), example.output),
            ((TEST_PAIR, 0), test_input),
        ):
            for row, cells in enumerate(grid):
                expected |= {(*where, row, column): cell for column, cell in enumerate(cells)}
        assert found == expected


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


def test_a_prompt_that_is_cut_keeps_the_cells_of_its_beginning(tokenizer):
    whole, _ = accepted(TASK, DIGITS, tokenizer)
    cut, _ = accepted(TASK, DIGITS, tokenizer, LengthLimit(6, "truncate"))
    assert np.array_equal(cut.cells, whole.cells[:6])
    assert (cut.cells != -1).any()


def test_a_chat_template_that_changes_the_text_of_grids_is_refused(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ messages[-1]['content'] | upper | replace('\\n', ' ') }}"
    rejected, _ = prompts_of(TASK, CHAT, other, NO_LIMIT)
    assert isinstance(rejected, RejectedTask)
    assert (rejected.task_id, rejected.reason) == ("t", "chat_template")
    assert "changed the text of the user's message" in rejected.detail


def test_variants_of_tasks_are_samples_and_documents_have_none(tokenizer):
    plan = AugmentationPlan(3, seed=0, keep_background=False)
    variants = [variant for variant in augment(TASK, plan) if isinstance(variant, Task)]
    expected = [variant.sample_id(index) for variant in variants for index in range(2)]
    assert len({*expected}) == 6
    with beam.Pipeline("FnApiRunner") as pipeline:
        result = (
            pipeline
            | beam.Create([TASK, TEXT])
            | TokenizeTasks("random:tiny", DIGITS, NO_LIMIT, plan)
        )
        ids = result.prompts | "Id" >> beam.Map(lambda prompt: prompt.sample_id)
        assert_that(ids, equal_to([*expected, "b.jsonl#d"]), "prompts")


def test_a_task_with_too_few_variants_keeps_those_it_has_and_is_reported(tokenizer):
    dot = Pair(((1,),), ((1,),))
    task = Task("dot", "a.json", (dot,), (dot,))
    plan = AugmentationPlan(100, seed=0, keep_background=True)
    with beam.Pipeline("FnApiRunner") as pipeline:
        result = (
            pipeline | beam.Create([task]) | TokenizeTasks("random:tiny", DIGITS, NO_LIMIT, plan)
        )
        tasks = result.prompts | "Id" >> beam.Map(lambda prompt: prompt.task_id)
        assert_that(tasks, equal_to(["dot"] * 9), "prompts")
        rejected = result[REJECTED] | "Why" >> beam.Map(lambda item: (item.task_id, item.reason))
        assert_that(rejected, equal_to([("dot", "too_few_variants")]), "rejected")
