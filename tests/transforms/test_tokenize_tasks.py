import copy
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from activation_dataset.input_counts import Written
from activation_dataset.prompts import Prompt
from corpus.augment import AugmentationPlan, augment
from corpus.prompt import TEST_PAIR, render
from corpus.task import Document, Pair, RejectedTask, Task
from corpus.template import load_template, shipped_templates
from qwen.source import OtherWorkerError, open_model
from transforms.assign_shards import fingerprint
from transforms.read_tasks import REJECTED
from transforms.report_inputs import GatherReport, InputReport
from transforms.shuffle_encoding import decode_prompt, encode_prompt
from transforms.tokenize_tasks import (
    WRITTEN,
    Overlength,
    SampleRules,
    TokenizeTasks,
    _Tokenize,
    prompts_of,
    samples_of,
    tokenize,
)

DIGITS, CHAT = load_template("digits"), load_template("digits-chat")
NO_LIMIT = SampleRules(10_000, "reject")
TASK = Task(
    "t",
    "folder/a.json",
    train=(Pair(((1, 2), (3, 4)), ((5,),)),),
    test=(Pair(((6,),), None), Pair(((7, 7, 7),), None)),
)
DOT = Task("dot", "a.json", (Pair(((1,),), ((1,),)),), (Pair(((1,),), None),))
THREE, TWELVE = (AugmentationPlan(count, seed=0, keep_background=True) for count in (3, 12))
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


@pytest.mark.parametrize("overlength", ["reject", "truncate"])
def test_a_task_that_is_too_long_is_never_truncated(tokenizer, overlength: Overlength):
    """Each test input is accepted or rejected on its own."""
    first, second = accepted(TASK, DIGITS, tokenizer)
    length = first.num_tokens
    kept, rejected = prompts_of(TASK, DIGITS, tokenizer, SampleRules(length, overlength))
    assert isinstance(kept, Prompt)
    assert isinstance(rejected, RejectedTask)
    assert np.array_equal(kept.token_ids, first.token_ids)
    assert (rejected.source, rejected.task_id, rejected.samples) == ("folder/a.json", "t", 1)
    assert (rejected.kind, rejected.reason) == ("sample", "too_long")
    for part in (second.sample_id, f"{second.num_tokens} tokens", f"allows {length}", "raise it"):
        assert part in rejected.detail
    assert ("test input" in rejected.detail) == (overlength == "truncate")


@pytest.mark.parametrize("document", [TEXT, TALK], ids=["text", "chat"])
def test_a_document_that_is_too_long_is_rejected_or_counts_what_it_loses(tokenizer, document):
    (whole,) = accepted(document, DIGITS, tokenizer)
    assert whole.truncated_tokens == 0
    (rejected,) = prompts_of(document, DIGITS, tokenizer, SampleRules(3, "reject"))
    assert isinstance(rejected, RejectedTask)
    assert rejected.reason == "too_long"
    assert "--overlength=truncate" in rejected.detail
    (cut,) = accepted(document, DIGITS, tokenizer, SampleRules(3, "truncate"))
    assert np.array_equal(cut.token_ids, whole.token_ids[:3])
    assert cut.truncated_tokens == whole.num_tokens - 3
    again = decode_prompt(encode_prompt(cut))
    assert again.truncated_tokens == cut.truncated_tokens, "on its way to another worker"
    longer = replace(cut, truncated_tokens=cut.truncated_tokens + 1)
    assert fingerprint(longer) != fingerprint(cut), "a run with other records must not resume"


@pytest.mark.parametrize(
    ("item", "limit", "plan", "written", "rejections"),
    [
        (TASK, NO_LIMIT, None, Written(1, 2), []),
        (TASK, SampleRules(18, "truncate"), None, Written(1, 1), [("sample", "too_long", 1)]),
        (TASK, SampleRules(5, "truncate"), None, None, [("task", "too_long", 2)]),
        (TASK, SampleRules(5, "reject"), THREE, None, [("task", "too_long", 6)]),
        (TEXT, SampleRules(3, "truncate"), THREE, Written(1, 1, 1, 4), []),
        (TEXT, SampleRules(3, "reject"), None, None, [("task", "too_long", 1)]),
        (DOT, NO_LIMIT, TWELVE, Written(1, 9), [("sample", "too_few_variants", 3)]),
        (
            *(DOT, SampleRules(2, "reject"), TWELVE, None),
            [("task", "too_long", 9), ("sample", "too_few_variants", 3)],
        ),
    ],
)
def test_tasks_and_samples_are_counted_apart(tokenizer, item, limit, plan, written, rejections):
    found = list(samples_of(item, plan, DIGITS, tokenizer, limit))
    prompts = [each for each in found if isinstance(each, Prompt)]
    rejected = [each for each in found if isinstance(each, RejectedTask)]
    assert [(each.kind, each.reason, each.samples) for each in rejected] == rejections
    assert [each for each in found if isinstance(each, Written)] == [written] * bool(prompts)
    counts = InputReport(written or Written(), tuple(rejected)).counts
    variants = plan.variants if plan and isinstance(item, Task) else 1
    tests = len(item.test) if isinstance(item, Task) else 1
    assert counts.tasks.read == 1
    assert counts.samples.read == variants * tests
    assert counts.samples.written == len(prompts)


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
    assert tokenize(render(DIGITS, TEXT), other).num_tokens, "a text needs no chat template"


@pytest.mark.parametrize("name", shipped_templates())
def test_every_cell_of_the_prompt_is_traced_to_its_token(tokenizer, name: str):
    """Return example, role, row, column and color of each cell of `TASK`."""
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
    variants = [
        variant
        for task in (TASK, DOT)
        for variant in augment(task, plan)
        if isinstance(variant, Task)
    ]
    ids = [each.sample_id(index) for each in variants for index in range(len(each.test))]
    assert len({*ids}) == 2 * 50 + 9
    items = [TASK, DOT, TEXT, TALK, Document("e", "b.jsonl", "")]
    with beam.Pipeline("FnApiRunner") as pipeline:
        transform = TokenizeTasks("random:tiny", DIGITS, NO_LIMIT, plan)
        result = pipeline | beam.Create(items) | transform
        found = result.prompts | "Id" >> beam.Map(lambda prompt: prompt.sample_id)
        assert_that(found, equal_to([*ids, "b.jsonl#d", "b.jsonl#m"]), "prompts")
        reasons = result[REJECTED] | "Why" >> beam.Map(lambda item: (item.task_id, item.reason))
        rejected = [("dot", "too_few_variants"), ("e", "no_tokens")]
        assert_that(reasons, equal_to(rejected), "rejected")
        report = result[WRITTEN] | beam.CombineGlobally(GatherReport())
        written = report | "Written" >> beam.Map(lambda each: each.written)
        assert_that(written, equal_to([Written(4, 2 * 50 + 9 + 2)]), "written")


def test_a_prompt_with_an_id_beyond_the_embedding_is_rejected_by_name(tokenizer):
    """Other prompts are accepted, although the tokenizer has such an id."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    document = Document("x", "b.jsonl", "A <|im_end|>")
    limit = replace(NO_LIMIT, vocab_size=end)
    (rejected,) = prompts_of(document, DIGITS, tokenizer, limit)
    assert isinstance(rejected, RejectedTask)
    assert rejected.reason == "unknown_token_id"
    for part in ("b.jsonl#x", "<|im_end|>", f"id {end}", f"vocab_size {end}"):
        assert part in rejected.detail
    accepted(document, DIGITS, tokenizer, replace(NO_LIMIT, vocab_size=end + 1))
    accepted(TEXT, DIGITS, tokenizer, limit)
    (whole,) = accepted(document, DIGITS, tokenizer)
    cut = SampleRules(whole.num_tokens - 1, "truncate", end)
    assert accepted(document, DIGITS, tokenizer, cut), "the token is cut off"


@pytest.mark.parametrize(
    "chat_template",
    ["{{ messages[0].content | replace('\n', ' ') }}", "{{ 2 * messages[0].content }}"],
)
def test_samples_whose_cells_are_unknown_are_counted(tokenizer, chat_template: str):
    """A chat template that changes or repeats the text makes the places of cells unknown."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = chat_template
    found = list(samples_of(TASK, None, replace(CHAT, system=""), other, NO_LIMIT))
    prompts = [each for each in found if isinstance(each, Prompt)]
    assert [prompt.cells_known for prompt in prompts] == [False, False]
    assert found[-1] == Written(1, 2, unknown_cell_samples=2)


def test_a_worker_with_another_tokenizer_refuses_to_work(checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    fingerprint = open_model(folder).tokenizer_fingerprint()
    for change in (False, True):
        if change:
            (folder / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
        worker = _Tokenize(str(folder), DIGITS, NO_LIMIT, None, (), fingerprint)
        with pytest.raises(OtherWorkerError, match=fingerprint) if change else nullcontext():
            worker.setup()
