"""Counts of what a run read, wrote and rejected: files, tasks and samples, each by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from activation_dataset.prompts import Prompt

RejectedKind = Literal["file", "task", "sample"]
"""The extent of a rejection: the rest of a file, a whole task or document, or some samples."""


@dataclass(frozen=True)
class Written:
    """What is written of some tasks and documents.

    Attributes:
        tasks: those with at least one sample.
        samples: their samples.
        truncated_samples, truncated_tokens: samples that lost their end, and the tokens they lost.
        unknown_cell_samples: samples with grids whose cells could not be mapped to tokens.
        unchosen_tasks, unchosen_samples: tasks without any such sample, and samples, of which no
            token is chosen.
    """

    tasks: int = 0
    samples: int = 0
    truncated_samples: int = 0
    truncated_tokens: int = 0
    unknown_cell_samples: int = 0
    unchosen_tasks: int = 0
    unchosen_samples: int = 0

    @classmethod
    def of(cls, prompt: Prompt) -> Written:
        """Count one sample."""
        if not prompt.has_chosen_tokens:
            return cls(unchosen_samples=1)
        cut = prompt.truncated_tokens
        return cls(0, 1, int(cut > 0), cut, int(not prompt.cells_known))

    def __add__(self, other: Written) -> Written:
        return Written(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Count:
    """Tasks or samples: read, written, left out as no token is chosen, and rejected by reason.

    Raises:
        ValueError: they do not add up.
    """

    read: int
    written: int
    unchosen: int
    rejected: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.read != self.written + self.unchosen + sum(self.rejected.values()):
            raise ValueError(
                f"read is {self.read}, but {self.written} are written, {self.unchosen} left out, "
                f"and {sum(self.rejected.values())} rejected"
            )

    @classmethod
    def of(cls, written: int, unchosen: int, rejected: Mapping[str, int]) -> Count:
        """Add up what was read."""
        return cls(written + unchosen + sum(rejected.values()), written, unchosen, rejected)


@dataclass(frozen=True)
class InputCounts:
    """Everything that a run read.

    Attributes:
        tasks: tasks and documents. One is written if at least one of its samples is.
        samples: samples of the tasks that could be read: variants times test inputs, or windows of
            a document.
        rejected_files: reason to number of files that could not be read, or not to their end.
        truncated_samples, truncated_tokens: written samples that lost their end, and the tokens
            they lost.
        unknown_cell_samples: written samples with grids whose cells could not be mapped to tokens
            one to one.

    Raises:
        ValueError: the counts contradict each other.
    """

    tasks: Count
    samples: Count
    rejected_files: Mapping[str, int]
    truncated_samples: int
    truncated_tokens: int
    unknown_cell_samples: int

    def __post_init__(self) -> None:
        if self.tasks.written > self.samples.written or (
            self.samples.written and not self.tasks.written
        ):
            raise ValueError(
                f"{self.samples.written} samples are written of {self.tasks.written} tasks"
            )
        if self.unknown_cell_samples > self.samples.written:
            raise ValueError(
                f"{self.unknown_cell_samples} of {self.samples.written} samples have unknown cells"
            )
        most = min(self.samples.written, self.truncated_tokens)
        if self.truncated_samples > most or (self.truncated_tokens and not self.truncated_samples):
            raise ValueError(
                f"{self.truncated_tokens} tokens are cut off {self.truncated_samples} of "
                f"{self.samples.written} samples"
            )

    @classmethod
    def of(
        cls, written: Written, rejections: Iterable[tuple[RejectedKind, str, int]]
    ) -> InputCounts:
        """Combine what is written with the kind, reason and samples of each rejection."""
        files, tasks, samples = count_rejections(rejections)
        return cls(
            tasks=Count.of(written.tasks, written.unchosen_tasks, tasks),
            samples=Count.of(written.samples, written.unchosen_samples, samples),
            rejected_files=files,
            truncated_samples=written.truncated_samples,
            truncated_tokens=written.truncated_tokens,
            unknown_cell_samples=written.unknown_cell_samples,
        )

    @property
    def rejected(self) -> tuple[Mapping[str, int], ...]:
        """Rejected files, tasks and samples by reason, as `count_rejections` gives them."""
        return self.rejected_files, self.tasks.rejected, self.samples.rejected


def count_rejections(
    rejections: Iterable[tuple[RejectedKind, str, int]],
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Return rejected files, tasks and samples by reason, sorted.

    Args:
        rejections: kind, reason and number of samples of each.
    """
    files, tasks, samples = Counter[str](), Counter[str](), Counter[str]()
    for kind, reason, lost in rejections:
        if kind == "file":
            files[reason] += 1
        elif kind == "task":
            tasks[reason] += 1
        if lost:
            samples[reason] += lost
    return dict(sorted(files.items())), dict(sorted(tasks.items())), dict(sorted(samples.items()))
