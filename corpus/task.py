"""Contents of a corpus: ARC tasks, documents, and rejected records with the reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Grid = tuple[tuple[int, ...], ...]
"""Cells `grid[row][column]` in 0..9: at least 1 x 1, all rows of the same width."""

MAX_GRID_SIDE = 128
"""Maximum number of rows and columns of a grid. ARC has at most 30, synthetic sets have more."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An input grid and its output grid, which is None for a test without an answer."""

    input: Grid
    output: Grid | None


@dataclass(frozen=True, slots=True)
class Task:
    """An ARC task: at least one training pair, all with outputs, and at least one test input.

    Attributes:
        task_id: id, unique only in its file; the public sets share ids.
        source: path of the file relative to the common root of all inputs.
        train: training pairs.
        test: test pairs.
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
"""One turn of a chat: a JSON object with `role`, usually `content`, and any other keys."""


@dataclass(frozen=True, slots=True)
class Document:
    """Any input other than a task: `text`, `messages` or `token_ids`.

    Attributes:
        document_id: id, unique only in its file.
        source: path of the file relative to the common root of all inputs.
        text: plain text, None for messages and token ids.
        messages: turns of a chat, otherwise empty.
        template_arguments: arguments of the chat template other than the messages, such as `tools`.
        token_ids: token ids, used unchanged, otherwise empty.
    """

    document_id: str
    source: str
    text: str | None
    messages: tuple[Message, ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    token_ids: tuple[int, ...] = ()

    @property
    def sample_id(self) -> str:
        """Key of the document, unique in a corpus: `source#document_id`."""
        return f"{self.source}#{self.document_id}"


@dataclass(frozen=True, slots=True)
class RejectedTask:
    """A file, a task or document, or some samples of a task or document, that cannot be used.

    Attributes:
        source: path of the file relative to the common root of all inputs.
        task_id: id of the task or document; "" if the whole file is rejected.
        reason: one of `REASONS`, a reason in `transforms.tokenize_tasks`, or `damaged_archive`.
        detail: explanation for the user: file, task, field, what was seen and what is allowed.
        kind: "file", "task" (also for a document), or "sample" for some samples, or for another
            reason of a rejected task.
        samples: number of rejected samples; 0 for a task that could not be read.
    """

    source: str
    task_id: str
    reason: str
    detail: str
    kind: Literal["file", "task", "sample"] = "task"
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """A remark on a task or document that is used.

    Attributes:
        source: path of the file relative to the common root of all inputs.
        task_id: id of the task or document.
        reason: one of `NOTICE_REASONS`.
        detail: explanation for the user.
    """

    source: str
    task_id: str
    reason: str
    detail: str


Item = Task | Document | RejectedTask | Notice


class Rejection(Exception):
    """Cause of a rejected record or file; `reason` is usually a key of `REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def of(self, source: str, record_id: str = "") -> RejectedTask:
        """Return the rejected record. Its `detail` begins with the file and the record."""
        where = f"{source}, task {record_id}" if record_id else source
        kind: Literal["file", "task"] = "task" if record_id else "file"
        return RejectedTask(source, record_id, self.reason, f"{where}: {self.detail}", kind)


REASONS: Mapping[str, str] = MappingProxyType(
    {
        # The file.
        "empty_file": "a file that is empty or contains only white space",
        "bad_encoding": "text that is not UTF-8, or half of a surrogate pair",
        "compressed_file": "a compressed file without the suffix of its format",
        "not_json": "text that is not valid JSON",
        "truncated_json": "a file that ends in the middle of its JSON",
        "too_deep": "arrays or objects nested too deeply for a record",
        "record_too_large": "a record larger than the limit for a record",
        "bad_table": "a Parquet or Arrow file that cannot be read, or only in part",
        "solutions_file": "a Kaggle solutions file, which has no inputs",
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
        "bad_token_ids": "token ids that are not whole numbers, or that contain padding",
        "empty_text": "a text, or messages, with only white space",
        "bad_message": "a message without a role or text, or with an image or audio",
        "bad_chat": "tools or another field of a chat that chat templates do not accept",
        "ambiguous": "a record with several contents; `--text_field` names the one to read",
        "preference": "a record with a chosen and a rejected answer",
        "no_text_field": "a record without the field that `--text_field` names",
    }
)
"""Meaning of each reason that `parse_tasks` and `parse_table` use."""

NOTICE_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "same_content": "a task or document with the same content as another one",
        "repeated_name": "a record with its position as id: its name repeats or is not an id",
    }
)
"""Meaning of each reason of a `Notice`."""
