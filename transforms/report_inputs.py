"""Everything about the inputs that is not a sample, in one report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import apache_beam as beam

from activation_dataset.input_counts import InputCounts, Written
from activation_dataset.metadata import InputFile
from corpus.task import Notice, RejectedTask

Reported = RejectedTask | Notice | InputFile | Written | str
"""Part of a report; a string names a file that is not read."""


@dataclass(frozen=True)
class InputReport:
    """Files, rejections, notices and counts of a run, each in no particular order.

    Attributes:
        written: counts of written tasks and samples.
        rejected: rejected files, tasks, documents and samples.
        notices: remarks on inputs that are used.
        files: files that were read.
        skipped: names of files that were left out.
    """

    written: Written = field(default_factory=Written)
    rejected: tuple[RejectedTask, ...] = ()
    notices: tuple[Notice, ...] = ()
    files: tuple[InputFile, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def counts(self) -> InputCounts:
        """Counts of everything that was read."""
        rejected = ((each.kind, each.reason, each.samples) for each in self.rejected)
        return InputCounts.of(self.written, rejected)


class GatherReport(beam.CombineFn):
    """Combine `Reported` values into an `InputReport`."""

    def create_accumulator(self) -> tuple[Written, list[Reported]]:
        """Return an empty report."""
        return Written(), []

    def add_input(
        self, accumulator: tuple[Written, list[Reported]], reported: Reported
    ) -> tuple[Written, list[Reported]]:
        """Add a value to the counts of written tasks and samples, or to the other values."""
        written, others = accumulator
        if isinstance(reported, Written):
            return written + reported, others
        others.append(reported)
        return accumulator

    def merge_accumulators(
        self, accumulators: Iterable[tuple[Written, list[Reported]]]
    ) -> tuple[Written, list[Reported]]:
        """Merge partial reports."""
        total, merged = Written(), list[Reported]()
        for written, others in accumulators:
            total += written
            merged += others
        return total, merged

    def extract_output(self, accumulator: tuple[Written, list[Reported]]) -> InputReport:
        """Return the report."""
        written, others = accumulator
        return InputReport(
            written,
            tuple(each for each in others if isinstance(each, RejectedTask)),
            tuple(each for each in others if isinstance(each, Notice)),
            tuple(each for each in others if isinstance(each, InputFile)),
            tuple(each for each in others if isinstance(each, str)),
        )
