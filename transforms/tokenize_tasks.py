"""Tasks to prompts of token ids: one for every test input, one for every document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import TaggedOutput

from activation_dataset.prompts import Prompt
from corpus.augment import AugmentationPlan, augment
from corpus.prompt import RenderedPrompt, render
from corpus.task import Document, RejectedTask, Task
from corpus.template import PromptTemplate
from corpus.token_cells import token_cells
from qwen.source import open_model
from transforms.chat_template import ChatTemplateError, chat_text
from transforms.read_tasks import REJECTED
from transforms.shuffle_encoding import decode_item, encode_item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overlength = Literal["reject", "truncate"]


@dataclass(frozen=True)
class LengthLimit:
    """A limit of tokens, and whether longer prompts are rejected or lose their end."""

    max_length: int
    overlength: Overlength


def variants_of(
    item: Task | Document, plan: AugmentationPlan | None
) -> Iterator[Task | Document | RejectedTask]:
    """Yield the variants of a task, itself included; of a document, the document alone."""
    if plan is None or isinstance(item, Document):
        yield item
    else:
        yield from augment(item, plan)


def prompts_of(
    item: Task | Document | RejectedTask,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    limit: LengthLimit,
) -> Iterator[Prompt | RejectedTask]:
    """Yield the prompts of a task or document, and rejected ones with the reason."""
    if isinstance(item, RejectedTask):
        yield item
        return
    if isinstance(item, Task):
        task_id = item.task_id
        sample_ids = [item.sample_id(index) for index in range(len(item.test))]
    else:
        task_id, sample_ids = item.document_id, [item.sample_id]
    for index, sample_id in enumerate(sample_ids):
        try:
            token_ids, cells = tokenize(render(template, item, index), tokenizer)
        except ChatTemplateError as error:
            yield RejectedTask(item.source, task_id, "chat_template", f"{sample_id}: {error}")
            continue
        if not len(token_ids):
            detail = f"{sample_id}: the prompt has no tokens"
            yield RejectedTask(item.source, task_id, "no_tokens", detail)
        elif len(token_ids) > limit.max_length and limit.overlength == "reject":
            detail = (
                f"{sample_id}: the prompt has {len(token_ids)} tokens, --max_length allows "
                f"{limit.max_length}; raise it, or keep the beginning with --overlength=truncate"
            )
            yield RejectedTask(item.source, task_id, "too_long", detail)
        else:
            kept = slice(limit.max_length)
            yield Prompt(sample_id, task_id, token_ids[kept], cells[kept])


def tokenize(
    prompt: RenderedPrompt, tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray]:
    """Return the token ids of a prompt, [num_tokens] int32, and their cells, [num_tokens, 4] int16.

    The chat template alone adds tokens. `corpus.token_cells` describes the cells.

    Raises:
      ChatTemplateError: if the prompt is a chat that the chat template refuses.
    """
    text, cells = prompt.text, prompt.cells
    if prompt.messages:
        text = chat_text(prompt, tokenizer)
        try:
            cells = prompt.cells_within(text)
        except ValueError as error:
            raise ChatTemplateError(str(error)) from error
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2)
    return np.asarray(encoded["input_ids"], np.int32), token_cells(cells, offsets)


@dataclass(eq=False)
class TokenizeTasks(beam.PTransform):
    """Tasks and documents to the outputs `prompts` (`Prompt`) and `rejected` (`RejectedTask`).

    Attributes:
      model_path, template, limit: the model of the tokenizer, and how a task becomes a prompt.
      augmentation: the variants of a task to use too; None for none.
    """

    model_path: str
    template: PromptTemplate
    limit: LengthLimit
    augmentation: AugmentationPlan | None = None

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
                _Tokenize(self.model_path, self.template, self.limit, self.augmentation)
            ).with_outputs(REJECTED, main="prompts")
        )


@dataclass(eq=False)
class _Tokenize(beam.DoFn):
    model_path: str
    template: PromptTemplate
    limit: LengthLimit
    augmentation: AugmentationPlan | None

    def setup(self) -> None:
        self._tokenizer = open_model(self.model_path).tokenizer()

    def process(self, item: Task | Document) -> Iterator[Prompt | TaggedOutput]:
        for variant in variants_of(item, self.augmentation):
            for prompt in prompts_of(variant, self.template, self._tokenizer, self.limit):
                yield prompt if isinstance(prompt, Prompt) else TaggedOutput(REJECTED, prompt)
