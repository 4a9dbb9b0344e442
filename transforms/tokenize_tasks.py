"""Conversion of tasks and documents to prompts, one for each test input or window.

Reasons to reject a sample: `too_long`, `no_tokens`, `unknown_token_id`, `has_bos`, `chat_template`,
`unknown_turns`, `unknown_cells`, `no_tokenizer` and `too_few_variants`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import TaggedOutput

from activation_dataset.input_counts import Written
from activation_dataset.prompts import NO_CELL, Prompt
from corpus.augment import AugmentationPlan, augment
from corpus.prompt import RenderedPrompt, render
from corpus.task import Document, RejectedTask, Task
from corpus.template import PromptTemplate
from corpus.token_cells import token_cells
from qwen.source import ModelSource, OtherWorkerError, open_model
from transforms.chat_template import ChatTemplateError, chat_text
from transforms.chat_turns import shows_places_of, turns_of
from transforms.choose_tokens import ALL_TOKENS, TokenChoice, UnknownTokensError, choose
from transforms.read_tasks import REJECTED
from transforms.shuffle_encoding import decode_item, encode_item
from transforms.windows import truncated, windows_of, with_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WRITTEN = "written"

Overlength = Literal["reject", "truncate"]


@dataclass(frozen=True)
class SampleRules:
    """Rules that limit the length of samples and choose their tokens.

    A prompt of a task that is too long is always rejected, because it ends with the test input.

    Attributes:
        max_length: largest number of tokens of a sample.
        overlength: `reject` rejects longer documents, `truncate` cuts off their end.
        context_size: tokens of each window of a document, instead of `max_length`; None to keep
            documents whole.
        context_overlap: tokens that a window repeats from the previous one. They are not chosen.
        bos: id of a token to prepend to every sample, included in its length; None for none.
        choice: tokens whose vectors are stored or averaged.
        vocab_size: rows of the model's embedding. A prompt with a larger token id is rejected.
        special_ids: ids that the tokenizer marks as special.
    """

    max_length: int
    overlength: Overlength = "reject"
    context_size: int | None = None
    context_overlap: int = 0
    bos: int | None = None
    choice: TokenChoice = ALL_TOKENS
    vocab_size: int | None = None
    special_ids: frozenset[int] = frozenset()

    def of_model(self, source: ModelSource) -> SampleRules:
        """Return the rules completed with the properties of the model and its tokenizer."""
        special = set[int]()
        if tokenizer := source.tokenizer_if_any():
            added = tokenizer.added_tokens_decoder.items()
            special |= {number for number, each in added if each.special}
            special |= {*tokenizer.all_special_ids}
        return replace(self, vocab_size=source.config.vocab_size, special_ids=frozenset(special))


def variants_of(
    item: Task | Document, plan: AugmentationPlan | None
) -> Iterator[Task | Document | RejectedTask]:
    """Yield a task and its variants, or only the document."""
    if plan is None or isinstance(item, Document):
        yield item
    else:
        yield from augment(item, plan)


def samples_of(
    item: Task | Document,
    augmentation: AugmentationPlan | None,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase | None,
    rules: SampleRules,
) -> Iterator[Prompt | RejectedTask | Written]:
    """Yield the prompts of a task and its variants, or of a document, then the rejections.

    Samples without a chosen token are left out. The `Written` that counts all samples follows,
    unless all are rejected.
    """
    written, rejected = Written(), list[RejectedTask]()
    for variant in variants_of(item, augmentation):
        if isinstance(variant, RejectedTask):
            rejected.append(variant)
            continue
        for sample in prompts_of(variant, template, tokenizer, rules):
            if isinstance(sample, RejectedTask):
                rejected.append(sample)
            else:
                written += Written.of(sample)
                if sample.has_chosen_tokens:
                    yield sample
    if written.samples:
        yield from rejected
        yield replace(written, tasks=1)
    elif written.unchosen_samples:
        yield from rejected
        yield replace(written, unchosen_tasks=1)
    else:
        yield from _of_whole_task(rejected)


def _of_whole_task(rejected: Sequence[RejectedTask]) -> Iterator[RejectedTask]:
    """Merge the rejections of all samples of a task by reason; the first stands for the task."""
    for number, reason in enumerate(dict.fromkeys(each.reason for each in rejected)):
        same = [each for each in rejected if each.reason == reason]
        samples = sum(each.samples for each in same)
        detail = same[0].detail + (f"; the same for {samples} samples" if len(same) > 1 else "")
        kind: Literal["sample", "task"] = "sample" if number else "task"
        yield replace(same[0], detail=detail, kind=kind, samples=samples)


def prompts_of(
    item: Task | Document,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase | None,
    rules: SampleRules,
) -> Iterator[Prompt | RejectedTask]:
    """Yield the prompts of a task or document, and each rejected sample with the reason."""
    if isinstance(item, Task):
        task_id = item.task_id
        sample_ids = [item.sample_id(index) for index in range(len(item.test))]
    else:
        task_id, sample_ids = item.document_id, [item.sample_id]
    for index, sample_id in enumerate(sample_ids):
        try:
            rendered = render(template, item, index)
            if tokenizer is None and not rendered.token_ids:
                raise _RejectedSampleError("no_tokenizer", _NO_TOKENIZER)
            prompt = tokenize(rendered, tokenizer, sample_id, task_id)
            if rules.choice.needs_turns and rendered.messages and prompt.turns is None:
                raise _RejectedSampleError("unknown_turns", _UNKNOWN_TURNS)
            _check(prompt, item, rules, tokenizer)
            yield from _samples_of_prompt(prompt, item, rules)
        except (_RejectedSampleError, ChatTemplateError, UnknownTokensError) as error:
            detail = f"{sample_id}: {error}"
            yield RejectedTask(item.source, task_id, error.reason, detail, "sample", 1)


class _RejectedSampleError(ValueError):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _check(
    prompt: Prompt,
    item: Task | Document,
    rules: SampleRules,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Check the whole prompt of a task or document.

    Raises:
        _RejectedSampleError: if the sample must be rejected.
    """
    is_task, ids = isinstance(item, Task), prompt.token_ids
    if not len(ids):
        raise _RejectedSampleError("no_tokens", "the prompt has no tokens")
    if rules.bos is not None and ids[0] == rules.bos:
        raise _RejectedSampleError(
            "has_bos",
            f"the prompt begins with the token {rules.bos} already; leave --prepend_bos out",
        )
    room = rules.max_length - (rules.bos is not None)
    is_window = not is_task and rules.context_size is not None
    if not is_window and len(ids) > room:
        if is_task or rules.overlength == "reject":
            raise _RejectedSampleError(
                "too_long",
                f"the prompt has {len(ids)} tokens, but --max_length allows {room}; raise it"
                f"{_no_truncation(item, rules)}",
            )
        ids = ids[:room]
    if rules.vocab_size is not None and (largest := int(ids.max())) >= rules.vocab_size:
        known = f"but the model has vocab_size {rules.vocab_size}; give it its own tokenizer"
        if tokenizer is None or (isinstance(item, Document) and item.token_ids):
            detail = f"the record has the token id {largest}, {known}'s ids"
        else:
            text = tokenizer.decode([largest])
            detail = f"the tokenizer gives {text!r} the id {largest}, {known}, or leave it out"
        raise _RejectedSampleError("unknown_token_id", detail)


def _samples_of_prompt(
    prompt: Prompt, item: Task | Document, rules: SampleRules
) -> Iterator[Prompt]:
    reserved = int(rules.bos is not None)
    if isinstance(item, Document) and rules.context_size is not None:
        parts = windows_of(prompt, rules.context_size - reserved, rules.context_overlap)
    else:
        parts = iter([truncated(prompt, rules.max_length - reserved)])
    for part in parts:
        whole = part if rules.bos is None else with_bos(part, rules.bos)
        yield choose(whole, rules.choice, rules.special_ids)


_NO_TOKENIZER = (
    "the model has no tokenizer, so it can read only records of token ids, not texts; put the "
    "tokenizer.json of the model next to its weights"
)
_UNKNOWN_TURNS = (
    "the messages cannot be told apart in the text of the chat, since the chat template rewrites "
    "some of them or the tokenizer changes the text; leave the roles out of --tokens"
)


def _no_truncation(item: Task | Document, rules: SampleRules) -> str:
    if isinstance(item, Document):
        return (
            ", keep the beginning with --overlength=truncate, or cut documents into windows with "
            "--context_size"
        )
    if rules.overlength == "truncate":
        return ". A task is not truncated, since its prompt ends with the test input"
    return ""


def tokenize(
    prompt: RenderedPrompt,
    tokenizer: PreTrainedTokenizerBase | None,
    sample_id: str = "",
    task_id: str = "",
) -> Prompt:
    """Return the tokens of a prompt, with their cells and turns.

    Only the chat template adds tokens. `corpus.token_cells` describes the cells and `chat_turns`
    the turns, which are None for a chat whose turns cannot be told apart.

    Raises:
        ChatTemplateError: if the prompt is a chat that the chat template refuses.
    """
    if prompt.token_ids or tokenizer is None:
        ids = np.array(prompt.token_ids, np.int32)
        return Prompt(sample_id, task_id, ids, np.full((len(ids), 4), NO_CELL, np.int16))
    text, spans = prompt.text, None
    cells: np.ndarray | None = prompt.cells
    if prompt.messages:
        chat = chat_text(prompt, tokenizer)
        text, spans = chat.text, chat.spans
        cells = prompt.cells_within(text)
    if spans is not None and not shows_places_of(text, tokenizer):
        spans = None
    with_places = spans is not None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=with_places)
    token_ids = np.asarray(encoded["input_ids"], np.int32)
    shown = token_cells(text, cells, token_ids, lambda each: str(tokenizer.decode(each)))
    turns = None if spans is None else turns_of(spans, encoded["offset_mapping"])
    if turns is None:
        return Prompt(sample_id, task_id, token_ids, shown)
    roles = tuple(str(message["role"]) for message in prompt.messages)
    return Prompt(sample_id, task_id, token_ids, shown, turns=turns, roles=roles)


@dataclass(eq=False)
class TokenizeTasks(beam.PTransform):
    """Convert tasks and documents to the outputs `prompts`, `rejected` and `written`.

    The output `written` has a `Written` for each task or document that is not rejected as a whole.

    Attributes:
        model_path: model with the tokenizer.
        template: prompt template.
        rules: rules for samples.
        augmentation: variants of a task to add; None for none.
        ignore_config: fields of the model's `config.json` to leave out.
        tokenizer_fingerprint: fingerprint of the launcher's tokenizer. A worker with another one
            refuses to work. Not checked if empty.
    """

    model_path: str | os.PathLike[str]
    template: PromptTemplate
    rules: SampleRules
    augmentation: AugmentationPlan | None = None
    ignore_config: tuple[str, ...] = ()
    tokenizer_fingerprint: str = ""

    def expand(self, items: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        return (
            items
            # Files are few and samples many, so workers get items. Variants are made afterwards, so
            # that only items are shuffled.
            | "Encode" >> beam.Map(encode_item)
            | "Spread" >> beam.Reshuffle()
            | "Decode" >> beam.Map(decode_item)
            | "Tokenize"
            >> beam.ParDo(
                _Tokenize(
                    self.model_path,
                    self.template,
                    self.rules,
                    self.augmentation,
                    self.ignore_config,
                    self.tokenizer_fingerprint,
                )
            ).with_outputs(REJECTED, WRITTEN, main="prompts")
        )


@dataclass(eq=False)
class _Tokenize(beam.DoFn):
    model_path: str | os.PathLike[str]
    template: PromptTemplate
    rules: SampleRules
    augmentation: AugmentationPlan | None
    ignore_config: tuple[str, ...]
    tokenizer_fingerprint: str

    def setup(self) -> None:
        source = open_model(self.model_path, self.ignore_config)
        expected = self.tokenizer_fingerprint
        if expected and (found := source.tokenizer_fingerprint()) != expected:
            raise OtherWorkerError(
                f"{self.model_path}: this worker sees a tokenizer with the fingerprint {found}, "
                f"but the run was started with {expected}. Give every worker the same model."
            )
        self._tokenizer = source.tokenizer_if_any()
        self._rules = self.rules.of_model(source)

    def process(self, item: Task | Document) -> Iterator[Prompt | TaggedOutput]:
        for found in samples_of(
            item, self.augmentation, self.template, self._tokenizer, self._rules
        ):
            if isinstance(found, Prompt):
                yield found
            else:
                yield TaggedOutput(WRITTEN if isinstance(found, Written) else REJECTED, found)
