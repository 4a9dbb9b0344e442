"""The contents of a corpus: ARC tasks, documents, and rejected records with the reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Grid = tuple[tuple[int, ...], ...]
"""Cells `grid[row][column]` in 0..9: at least 1 x 1, all rows of the same width."""

MAX_GRID_SIDE = 128
"""The most rows and the most columns of a grid. ARC stops at 30, synthetic sets go further."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An input grid and its output grid; `output` is None for a test without an answer."""

    input: Grid
    output: Grid | None


@dataclass(frozen=True, slots=True)
class Task:
    """An ARC task: at least one training pair, all with outputs, and at least one test input.

    Attributes:
        task_id: unique in its file only; the public sets share ids.
        source: path of the file relative to the common root of all inputs.
        augmentation: key of a variant (see `corpus.augment`), "" for the task itself.
    """

    task_id: str
    source: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    augmentation: str = ""

    def sample_id(self, test_index: int) -> str:
        """Return the key of a test input, unique in a corpus: `source#task_id/test_index`.

        For a variant, `?` and the augmentation key are appended.
        """
        variant = f"?{self.augmentation}" if self.augmentation else ""
        return f"{self.source}#{self.task_id}/{test_index}{variant}"


Message = dict[str, Any]
"""One turn of a chat: a JSON object with `role`, mostly `content`, and all other keys it has."""


@dataclass(frozen=True, slots=True)
class Document:
    """Any other text: plain `text`, `messages`, or `token_ids`; the others are None or empty.

    Attributes:
        token_ids: ids that are taken unchanged.
        template_arguments: what a chat template takes besides the messages, such as `tools`.
    """

    document_id: str
    source: str
    text: str | None
    messages: tuple[Message, ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    token_ids: tuple[int, ...] = ()

    @property
    def sample_id(self) -> str:
        """The key of the document, unique in a corpus: `source#document_id`."""
        return f"{self.source}#{self.document_id}"


@dataclass(frozen=True, slots=True)
class RejectedTask:
    """A file, a task or document, or some of its samples, that could not be used.

    Attributes:
        task_id: "" if the file as a whole is at fault.
        reason: one of `REASONS`, or of `transforms.tokenize_tasks`.
        detail: a sentence for a person: file, task, field, what was seen and what is allowed.
        kind: "file", "task" (also for a document), or "sample" if only some of its samples are
            rejected.
        samples: rejected samples; 0 for a task that could not be read.
    """

    source: str
    task_id: str
    reason: str
    detail: str
    kind: Literal["file", "task", "sample"] = "task"
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to know about a task or document that is used.

    Attributes:
        reason: one of `NOTICE_REASONS`.
        detail: a sentence for a person.
    """

    source: str
    task_id: str
    reason: str
    detail: str


Item = Task | Document | RejectedTask | Notice


class Rejection(Exception):
    """The cause of a rejected record or file: `reason` is a key of `REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def of(self, source: str, record_id: str = "") -> RejectedTask:
        """Return the rejected record, with the file and the record named in `detail`."""
        where = f"{source}, task {record_id}" if record_id else source
        kind: Literal["file", "task"] = "task" if record_id else "file"
        return RejectedTask(source, record_id, self.reason, f"{where}: {self.detail}", kind)


REASONS: Mapping[str, str] = MappingProxyType(
    {
        # The file.
        "empty_file": "the file is empty or holds only white space",
        "bad_encoding": "text that is not UTF-8, or half of a surrogate pair",
        "compressed_file": "compressed, but without the suffix of a compressed file",
        "not_json": "not valid JSON, at the line given",
        "truncated_json": "the file ends before its JSON does",
        "too_deep": "arrays or objects nested too deeply for a record",
        "record_too_large": "a record larger than the limit for a record",
        "bad_table": "a Parquet or Arrow file that cannot be read, or not to its end",
        "solutions_file": "Kaggle's file of solutions, which has no inputs",
        # The record.
        "not_a_task": "valid JSON that is neither a task nor a document",
        "duplicate_key": "a JSON object with the same key twice",
        "duplicate_id": "an id that an earlier record of the file has",
        "bad_id": "an id that is not a short printable string or a whole number",
        # A task.
        "no_train_pairs": "a task without training pairs",
        "no_test_inputs": "a task without test inputs",
        "bad_pair": "a pair that is not an object with an input, and in training an output",
        "bad_grid": "a grid that is not a list of rows",
        "empty_grid": "a grid without rows, or a row without cells",
        "ragged_grid": "a grid with rows of different lengths",
        "grid_too_large": f"a grid with a side longer than {MAX_GRID_SIDE} cells",
        "bad_cell": "a cell that is not a whole number from 0 to 9",
        # A document.
        "bad_text": "a text that is not a string",
        "bad_token_ids": "token ids that are not whole numbers, or that hold padding",
        "empty_text": "a text, or messages, of white space only",
        "bad_message": "a message without a role or text, or with an image or audio",
        "bad_chat": "tools or another field of a chat that is not what chat templates take",
        "ambiguous": "a record with several contents; `--text_field` names the one to read",
        "preference": "a record with a chosen and a rejected answer",
        "no_text_field": "a record without the field that `--text_field` names",
    }
)
"""Every reason that `parse_tasks` and `parse_table` give, and its meaning."""

NOTICE_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "same_content": "a task or document with the content of another",
        "repeated_name": "a record called by its place, because its name is not its own",
    }
)
"""Every reason of a `Notice`, and its meaning."""
