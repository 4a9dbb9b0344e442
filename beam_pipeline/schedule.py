"""End of a run, where some workers wait while others finish the last shards."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Times at which workers run out of shards.

    Workers take one shard after another, by number, without other costs. A worker with several
    threads has several shards at once, so its real end differs by about a shard.

    Attributes:
        ends: end of each worker, ascending, in the unit of the shards' costs.
    """

    ends: tuple[float, ...]

    @classmethod
    def of(cls, costs: Iterable[float], workers: int) -> Schedule:
        """Give each shard to the worker that is free first."""
        ends = [0.0] * workers
        for cost in costs:
            heapq.heapreplace(ends, ends[0] + cost)
        return cls(tuple(sorted(ends)))

    @property
    def end(self) -> float:
        """Time at which the last worker finishes."""
        return self.ends[-1]

    @property
    def waiting(self) -> int:
        """Workers that finish before the last one."""
        return sum(end < self.end for end in self.ends)

    @property
    def longest_wait(self) -> float:
        """Fraction of the run that the first free worker waits, 0 to 1."""
        return 1 - self.ends[0] / self.end if self.end else 0.0

    @property
    def idle(self) -> float:
        """Fraction of the total worker time spent waiting, 0 to 1."""
        return 1 - sum(self.ends) / (len(self.ends) * self.end) if self.end else 0.0
