"""Counts of the files, tasks and samples that a run read, wrote and rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from activation_dataset.prompts import Prompt

RejectedKind = Literal["file", "task", "sample"]
"""Extent of a rejection: the rest of a file, a whole task or document, or some samples."""


@dataclass(frozen=True)
class Written:
    """Counts of written tasks and documents.

    Attributes:
        tasks: tasks with at least one written sample.
        samples: written samples.
        truncated_samples: written samples whose end was cut off.
        truncated_tokens: tokens that were cut off.
        unknown_cell_samples: written samples with grids whose cells could not be mapped to tokens.
        unchosen_tasks: tasks without a sample that has a chosen token.
        unchosen_samples: samples without a chosen token.
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
    """Counts of tasks or samples.

    Attributes:
        read: number of tasks or samples read.
        written: number written.
        unchosen: number excluded because no token is chosen.
        rejected: number rejected, by reason.

    Raises:
        ValueError: if the counts do not add up.
    """

    read: int
    written: int
    unchosen: int
    rejected: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.read != self.written + self.unchosen + sum(self.rejected.values()):
            raise ValueError(
                f"read is {self.read}, but {self.written} were written, {self.unchosen} left out, "
                f"and {sum(self.rejected.values())} rejected"
            )

    @classmethod
    def of(cls, written: int, unchosen: int, rejected: Mapping[str, int]) -> Count:
        """Return the counts, with `read` as their sum."""
        return cls(written + unchosen + sum(rejected.values()), written, unchosen, rejected)


@dataclass(frozen=True)
class InputCounts:
    """Counts of everything that a run read.

    Attributes:
        tasks: tasks and documents. A task counts as written if at least one sample was written.
        samples: samples of the tasks that could be read: variants times test inputs, or windows of
            a document.
        rejected_files: number of files that could not be read completely, by reason.
        truncated_samples: written samples whose end was cut off.
        truncated_tokens: tokens that were cut off.
        unknown_cell_samples: written samples with grids whose cells could not be mapped to tokens
            one to one.

    Raises:
        ValueError: if the counts contradict each other.
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
                f"{self.samples.written} samples of {self.tasks.written} tasks were written"
            )
        if self.unknown_cell_samples > self.samples.written:
            raise ValueError(
                f"{self.unknown_cell_samples} of {self.samples.written} samples have unknown cells"
            )
        most = min(self.samples.written, self.truncated_tokens)
        if self.truncated_samples > most or (self.truncated_tokens and not self.truncated_samples):
            raise ValueError(
                f"{self.truncated_tokens} tokens were cut off {self.truncated_samples} of "
                f"{self.samples.written} samples"
            )

    @classmethod
    def of(
        cls, written: Written, rejections: Iterable[tuple[RejectedKind, str, int]]
    ) -> InputCounts:
        """Combine the written counts with rejections, as in `count_rejections`."""
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
        """Rejected files, tasks and samples by reason, in the form of `count_rejections`."""
        return self.rejected_files, self.tasks.rejected, self.samples.rejected


def count_rejections(
    rejections: Iterable[tuple[RejectedKind, str, int]],
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Return the numbers of rejected files, tasks and samples by reason, sorted by reason.

    Args:
        rejections: kind, reason and number of lost samples of each rejection.
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
