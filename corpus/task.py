"""What a corpus holds: ARC tasks, documents, and records that were rejected, with the reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Grid = tuple[tuple[int, ...], ...]
"""A grid of cells, `grid[row][column]` in 0..9: at least 1 x 1, every row of the same width."""

MAX_GRID_SIDE = 128
"""The most rows, and the most columns, of a grid. ARC's own stop at 30; synthetic sets go on."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An input grid and its output grid; `output` is None where a test's answer is withheld."""

    input: Grid
    output: Grid | None


@dataclass(frozen=True, slots=True)
class Task:
    """An ARC task: at least one training pair, all with outputs, and at least one test input.

    `source` is the path of its file relative to the common root of all inputs. Ids recur across
    files, so only `source` and `task_id` together name a task; `test_index` completes a sample.
    `augmentation` is the key of a variant (see `corpus.augment`), "" for the task as it is.
    """

    task_id: str
    source: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    augmentation: str = ""

    def sample_id(self, test_index: int) -> str:
        """The key of one test input, unique in a corpus: `source#task_id/test_index`.

        That of a variant has `?` and the augmentation's key behind it.
        """
        variant = f"?{self.augmentation}" if self.augmentation else ""
        return f"{self.source}#{self.task_id}/{test_index}{variant}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is one of `corpus.validate.ROLES`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """Any other text: either plain `text`, or `messages` (then `text` is None)."""

    document_id: str
    source: str
    text: str | None
    messages: tuple[Message, ...] = ()

    @property
    def sample_id(self) -> str:
        """The key of the document, unique in a corpus: `source#document_id`."""
        return f"{self.source}#{self.document_id}"


@dataclass(frozen=True, slots=True)
class RejectedTask:
    """A record that could not be used.

    `task_id` is "" where the file as a whole is at fault. `reason` is one of `REASONS`; `detail`
    is a sentence for a person: the file, the task, the field, the value seen and those allowed.
    """

    source: str
    task_id: str
    reason: str
    detail: str


REASONS: Mapping[str, str] = MappingProxyType(
    {
        # The file.
        "empty_file": "the file holds nothing, or only white space",
        "bad_encoding": "text that is not UTF-8, or holds half of a surrogate pair",
        "compressed_file": "compressed, but not named so that it is decompressed while read",
        "not_json": "not valid JSON, at the line given",
        "truncated_json": "the file ends before its JSON does",
        "too_deep": "arrays or objects nested too deeply to be a record",
        "record_too_large": "one record is larger than the limit for a record",
        "bad_table": "a Parquet or Arrow file that cannot be read, or not to its end",
        "solutions_file": "Kaggle's file of solutions, which has no inputs",
        # The record.
        "not_a_task": "valid JSON that is neither a task nor a document",
        "duplicate_key": "a JSON object that has the same key twice",
        "duplicate_id": "an id that an earlier record of the file has",
        "bad_id": "an id that is not a short printable string or a whole number",
        # A task.
        "no_train_pairs": "a task without training pairs",
        "no_test_inputs": "a task without test inputs",
        "bad_pair": "a pair that is not an object with an input, and in training an output",
        "bad_grid": "a grid that is not a list of rows",
        "empty_grid": "a grid without rows, or a row without cells",
        "ragged_grid": "a grid whose rows differ in length",
        "grid_too_large": f"a grid with a side longer than {MAX_GRID_SIDE} cells",
        "bad_cell": "a cell that is not a whole number from 0 to 9",
        # A document.
        "bad_text": "a text that is not a string",
        "empty_text": "a text, or messages, without anything but white space",
        "bad_message": "a message that lacks a known role or a string as content",
    }
)
"""Every reason that `parse_tasks` gives, and what it means."""
