"""Tasks to prompts of token ids: one for every test input, one for every document.

Reasons to reject a sample: `too_long`, `no_tokens`, `unknown_token_id`, `chat_template` and
`too_few_variants`.
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
from activation_dataset.prompts import Prompt
from corpus.augment import AugmentationPlan, augment
from corpus.prompt import RenderedPrompt, render
from corpus.task import Document, RejectedTask, Task
from corpus.template import PromptTemplate
from corpus.token_cells import token_cells
from qwen.source import OtherWorkerError, open_model
from transforms.chat_template import ChatTemplateError, chat_text
from transforms.read_tasks import REJECTED
from transforms.shuffle_encoding import decode_item, encode_item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WRITTEN = "written"

Overlength = Literal["reject", "truncate"]


@dataclass(frozen=True)
class LengthLimit:
    """A limit of tokens, and whether longer documents are rejected or lose their end.

    A longer prompt of a task is always rejected: at its end is the test input.

    Attributes:
      max_length, overlength: the limit, and what happens to longer documents.
      vocab_size: rows of the model's embedding; a prompt with another token id is rejected. None if
        that is checked later.
    """

    max_length: int
    overlength: Overlength
    vocab_size: int | None = None


def variants_of(
    item: Task | Document, plan: AugmentationPlan | None
) -> Iterator[Task | Document | RejectedTask]:
    """Yield the variants of a task, itself included; of a document, the document alone."""
    if plan is None or isinstance(item, Document):
        yield item
    else:
        yield from augment(item, plan)


def samples_of(
    item: Task | Document,
    augmentation: AugmentationPlan | None,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    limit: LengthLimit,
) -> Iterator[Prompt | RejectedTask | Written]:
    """Yield the prompts of a task and its variants, or of a document; then what is rejected.

    If there is a prompt, the `Written` that counts all of them follows.
    """
    written, rejected = Written(), list[RejectedTask]()
    for variant in variants_of(item, augmentation):
        if isinstance(variant, RejectedTask):
            rejected.append(variant)
            continue
        for sample in prompts_of(variant, template, tokenizer, limit):
            if isinstance(sample, RejectedTask):
                rejected.append(sample)
            else:
                written += Written.of(sample)
                yield sample
    if written.samples:
        yield from rejected
        yield replace(written, tasks=1)
    else:
        yield from _of_whole_task(rejected)


def _of_whole_task(rejected: Sequence[RejectedTask]) -> Iterator[RejectedTask]:
    """Merge the rejections of all samples of a task by reason; the first stands for the task."""
    for number, reason in enumerate(dict.fromkeys(each.reason for each in rejected)):
        same = [each for each in rejected if each.reason == reason]
        samples = sum(each.samples for each in same)
        detail = same[0].detail + (f"; {samples} samples alike" if len(same) > 1 else "")
        kind: Literal["sample", "task"] = "sample" if number else "task"
        yield replace(same[0], detail=detail, kind=kind, samples=samples)


def prompts_of(
    item: Task | Document,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    limit: LengthLimit,
) -> Iterator[Prompt | RejectedTask]:
    """Yield the prompts of a task or document, and each rejected sample with the reason."""
    if isinstance(item, Task):
        task_id = item.task_id
        sample_ids = [item.sample_id(index) for index in range(len(item.test))]
    else:
        task_id, sample_ids = item.document_id, [item.sample_id]

    def rejected(sample_id: str, reason: str, detail: str) -> RejectedTask:
        return RejectedTask(item.source, task_id, reason, f"{sample_id}: {detail}", "sample", 1)

    kept = slice(limit.max_length)
    for index, sample_id in enumerate(sample_ids):
        try:
            token_ids, cells = tokenize(render(template, item, index), tokenizer)
        except ChatTemplateError as error:
            yield rejected(sample_id, "chat_template", str(error))
            continue
        excess = max(0, len(token_ids) - limit.max_length)
        if not len(token_ids):
            yield rejected(sample_id, "no_tokens", "the prompt has no tokens")
        elif excess and (isinstance(item, Task) or limit.overlength == "reject"):
            detail = (
                f"the prompt has {len(token_ids)} tokens, --max_length allows {limit.max_length}; "
                f"raise it{_no_truncation(item, limit)}"
            )
            yield rejected(sample_id, "too_long", detail)
        elif limit.vocab_size is not None and (
            (largest := int(token_ids[kept].max())) >= limit.vocab_size
        ):
            detail = (
                f"the tokenizer gives {tokenizer.decode([largest])!r} the id {largest}, but the "
                f"model has vocab_size {limit.vocab_size}; give it its own tokenizer, or leave "
                "that token out"
            )
            yield rejected(sample_id, "unknown_token_id", detail)
        else:
            yield Prompt(sample_id, task_id, token_ids[kept], cells[kept], excess)


def _no_truncation(item: Task | Document, limit: LengthLimit) -> str:
    if isinstance(item, Document):
        return ", or keep the beginning with --overlength=truncate"
    if limit.overlength == "truncate":
        return ". A task is not truncated, since its prompt ends with the test input"
    return ""


def tokenize(
    prompt: RenderedPrompt, tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray]:
    """Return the token ids of a prompt, [num_tokens] int32, and their cells, [num_tokens, 4] int16.

    The chat template alone adds tokens. `corpus.token_cells` describes the cells.

    Raises:
      ChatTemplateError: if the prompt is a chat that the chat template refuses.
    """
    if prompt.messages:
        text = chat_text(prompt, tokenizer)
        cells = prompt.cells_within(text)
    else:
        text, cells = prompt.text, prompt.cells
    token_ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    return token_ids, token_cells(text, cells, token_ids, lambda each: str(tokenizer.decode(each)))


@dataclass(eq=False)
class TokenizeTasks(beam.PTransform):
    """Tasks and documents to `prompts` (`Prompt`), `rejected` (`RejectedTask`) and `written`.

    The output `written` has a `Written` for each task or document with at least one prompt.

    Attributes:
      model_path, template, limit: the model of the tokenizer, and how a task becomes a prompt.
      augmentation: the variants of a task to use too; None for none.
      ignore_config: fields of the model's `config.json` to leave out.
      tokenizer_fingerprint: that of the launcher's tokenizer. A worker with another one refuses to
        work. Not checked if empty.
    """

    model_path: str | os.PathLike[str]
    template: PromptTemplate
    limit: LengthLimit
    augmentation: AugmentationPlan | None = None
    ignore_config: tuple[str, ...] = ()
    tokenizer_fingerprint: str = ""

    def expand(self, items: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        return (
            items
            # Files are few and samples many: spread them over the workers first. Variants are made
            # afterwards, so that only items that were read are shuffled.
            | "Encode" >> beam.Map(encode_item)
            | "Spread" >> beam.Reshuffle()
            | "Decode" >> beam.Map(decode_item)
            | "Tokenize"
            >> beam.ParDo(
                _Tokenize(
                    self.model_path,
                    self.template,
                    self.limit,
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
    limit: LengthLimit
    augmentation: AugmentationPlan | None
    ignore_config: tuple[str, ...]
    tokenizer_fingerprint: str

    def setup(self) -> None:
        source = open_model(self.model_path, self.ignore_config)
        expected = self.tokenizer_fingerprint
        if expected and (found := source.tokenizer_fingerprint()) != expected:
            raise OtherWorkerError(
                f"{self.model_path}: this worker sees a tokenizer with the fingerprint {found}, "
                f"the run was started with {expected}. Give every worker the same model."
            )
        self._tokenizer = source.tokenizer()
        self._limit = replace(self.limit, vocab_size=source.config.vocab_size)

    def process(self, item: Task | Document) -> Iterator[Prompt | TaggedOutput]:
        for found in samples_of(
            item, self.augmentation, self.template, self._tokenizer, self._limit
        ):
            if isinstance(found, Prompt):
                yield found
            else:
                yield TaggedOutput(WRITTEN if isinstance(found, Written) else REJECTED, found)
