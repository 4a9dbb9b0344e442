"""The end of a run: which workers wait while others finish the last shards."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The times at which workers have no more shard to take.

    A worker takes one shard after the other, in the order of their numbers, without other costs. A
    worker of several threads has several shards at once, so its real end differs by about a shard.

    Attributes:
        ends: of each worker, ascending, in the unit of the shards' costs.
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
        """The time at which the last worker has finished."""
        return self.ends[-1]

    @property
    def waiting(self) -> int:
        """Workers that finish before the last one."""
        return sum(end < self.end for end in self.ends)

    @property
    def longest_wait(self) -> float:
        """The part of the run that the first free worker waits, 0 to 1."""
        return 1 - self.ends[0] / self.end if self.end else 0.0

    @property
    def idle(self) -> float:
        """The part of the time of all workers that they wait, 0 to 1."""
        return 1 - sum(self.ends) / (len(self.ends) * self.end) if self.end else 0.0
