"""Alternating runs of two implementations, so that other load affects both equally."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pairs:
    """Seconds of one implementation and of a baseline, in alternating rounds.

    Attributes:
        ours: [rounds] seconds of wall time.
        other: [rounds] seconds of wall time of the baseline.
        ours_cpu: [rounds] seconds of CPU time of all threads and ended child processes.
        other_cpu: [rounds] seconds of CPU time of the baseline.
    """

    ours: list[float]
    other: list[float]
    ours_cpu: list[float]
    other_cpu: list[float]

    @property
    def ratio(self) -> float:
        """Speed relative to the baseline, as the median of the rounds."""
        return statistics.median(b / a for a, b in zip(self.ours, self.other, strict=True))

    @property
    def cpu_ratio(self) -> float:
        """Ratio of CPU times, which depends less on other load than `ratio`."""
        return statistics.median(b / a for a, b in zip(self.ours_cpu, self.other_cpu, strict=True))


def run_in_turn(ours: Callable[[], object], other: Callable[[], object], rounds: int) -> Pairs:
    """Run both alternately, after one round that warms the caches and does not count."""
    pairs = Pairs([], [], [], [])
    for number in range(rounds + 1):
        for run, wall, cpu in (
            (other, pairs.other, pairs.other_cpu),
            (ours, pairs.ours, pairs.ours_cpu),
        ):
            started, used = time.perf_counter(), _processor_seconds()
            run()
            if number:
                wall.append(time.perf_counter() - started)
                cpu.append(_processor_seconds() - used)
    return pairs


def _processor_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)
