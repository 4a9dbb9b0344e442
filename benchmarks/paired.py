"""Two ways to do the same work, run in turn, so that what else a machine does hits both alike."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pairs:
    """Seconds of one way and of another, which is the yardstick, in rounds in turn.

    Attributes:
        ours, other: [rounds] seconds of wall time.
        ours_cpu, other_cpu: [rounds] seconds of processor time, of all threads and of processes
            that have ended.
    """

    ours: list[float]
    other: list[float]
    ours_cpu: list[float]
    other_cpu: list[float]

    @property
    def ratio(self) -> float:
        """Speed over that of the yardstick: the median of the rounds."""
        return statistics.median(b / a for a, b in zip(self.ours, self.other, strict=True))

    @property
    def cpu_ratio(self) -> float:
        """The same in processor time, which a busy machine disturbs less."""
        return statistics.median(b / a for a, b in zip(self.ours_cpu, self.other_cpu, strict=True))


def run_in_turn(ours: Callable[[], object], other: Callable[[], object], rounds: int) -> Pairs:
    """Runs both once uncounted, to warm the caches, then in turn."""
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
