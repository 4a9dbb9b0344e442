"""Statistics of a layer's vectors, and how those of its parts become those of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.fields import FieldError, Fields
from activation_dataset.norms import NormHistogram

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics of the vectors of one layer. Vectors with a NaN or an infinity are only counted.

    Attributes:
        count: vectors, all of whose elements are finite.
        nonfinite_count: all other vectors.
        mean: [hidden] float64.
        variance: [hidden] float64, of the population: the mean squared deviation from the mean.
        mean_norm: mean of the vectors' Euclidean norms.
        mean_squared_norm: mean of their squares.
        max_norm: largest of the norms.
        norm_histogram: how many of the norms are in each of the bins of NormHistogram.

    All are 0 where count is 0.
    """

    count: int
    nonfinite_count: int
    mean: Float64Array
    variance: Float64Array
    mean_norm: float
    mean_squared_norm: float
    max_norm: float
    norm_histogram: NormHistogram

    @classmethod
    def empty(cls, hidden: int) -> LayerStatistics:
        """Statistics of no vectors of `hidden` elements."""
        return cls(0, 0, np.zeros(hidden), np.zeros(hidden), 0.0, 0.0, 0.0, NormHistogram())

    @property
    def hidden(self) -> int:
        """Elements of a vector."""
        return len(self.mean)

    @property
    def m2(self) -> Float64Array:
        """[hidden] float64: sum of squared deviations from the mean."""
        return self.variance * self.count

    def merge(self, other: LayerStatistics) -> LayerStatistics:
        """Statistics of these vectors and the other ones, pairwise (Chan, Golub, LeVeque 1979).

        Exact in the counts; in the last bits the order of the two matters.
        """
        if self.hidden != other.hidden:
            raise ValueError(
                f"cannot merge vectors of {self.hidden} and of {other.hidden} elements"
            )
        nonfinite = self.nonfinite_count + other.nonfinite_count
        if not self.count:
            return replace(other, nonfinite_count=nonfinite)
        if not other.count:
            return replace(self, nonfinite_count=nonfinite)
        count = self.count + other.count
        ours, theirs = self.count / count, other.count / count
        difference = other.mean - self.mean
        return LayerStatistics(
            count=count,
            nonfinite_count=nonfinite,
            mean=self.mean + difference * theirs,
            variance=self.variance * ours
            + other.variance * theirs
            + difference * difference * (ours * theirs),
            mean_norm=self.mean_norm * ours + other.mean_norm * theirs,
            mean_squared_norm=self.mean_squared_norm * ours + other.mean_squared_norm * theirs,
            max_norm=max(self.max_norm, other.max_norm),
            norm_histogram=self.norm_histogram.merge(other.norm_histogram),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for json; `from_json` gives back the same bits."""
        return {
            "count": self.count,
            "nonfinite_count": self.nonfinite_count,
            "mean": self.mean.tolist(),
            "variance": self.variance.tolist(),
            "mean_norm": self.mean_norm,
            "mean_squared_norm": self.mean_squared_norm,
            "max_norm": self.max_norm,
            "norm_histogram": self.norm_histogram.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "statistics") -> LayerStatistics:
        """Checks and reads what `to_json` made; `where` is what errors call it.

        Raises:
            FieldError: names the field that is missing, unknown or wrong.
        """
        fields = Fields(value, where)
        result = cls(
            count=fields.integer("count"),
            nonfinite_count=fields.integer("nonfinite_count"),
            mean=fields.vector("mean"),
            variance=fields.vector("variance"),
            mean_norm=fields.number("mean_norm"),
            mean_squared_norm=fields.number("mean_squared_norm"),
            max_norm=fields.number("max_norm"),
            norm_histogram=NormHistogram.from_json(
                fields.mapping("norm_histogram"), fields.path("norm_histogram")
            ),
        )
        fields.done()
        if len(result.mean) != len(result.variance):
            raise FieldError(
                f"{where}.variance has {len(result.variance)} elements, mean {len(result.mean)}"
            )
        if (total := result.norm_histogram.total) != result.count:
            raise FieldError(f"{where}.norm_histogram counts {total} norms, count {result.count}")
        return result

    def __eq__(self, other: object) -> bool:
        """Whether every value has the same bits (but for the sign of zero)."""
        if not isinstance(other, LayerStatistics):
            return NotImplemented
        return self.to_json() == other.to_json()


@dataclass
class OrderedMerge:
    """Merges the statistics of shards 0..n-1 into one, the same bits whatever the arrival order.

    The merges form a fixed binary tree over the shard numbers: the nodes of two siblings become
    their parent's as soon as both are there. Shards in order leave log2(n) nodes waiting, the worst
    order n/2. Can be pickled.
    """

    _nodes: dict[tuple[int, int], LayerStatistics] = field(default_factory=dict)
    """(level, index) to the statistics of shards index * 2^level .. (index + 1) * 2^level - 1."""

    def add(self, shard: int, statistics: LayerStatistics) -> None:
        """Adds one shard, which must not have been added before."""
        self._insert(0, shard, statistics)

    def merge(self, other: OrderedMerge) -> None:
        """Adds all shards that `other` holds, which must be none of these."""
        for (level, index), statistics in other._nodes.items():
            self._insert(level, index, statistics)

    def result(self, num_shards: int) -> LayerStatistics:
        """Statistics of shards 0..num_shards - 1.

        Raises:
            ValueError: shards are missing, too many, or were added twice.
        """
        expected = list(_roots(num_shards))
        if not expected or set(expected) != set(self._nodes):
            covered = sum(1 << level for level, _ in self._nodes)
            raise ValueError(
                f"statistics of {covered} shards do not make shards 0..{num_shards - 1}: "
                f"have {self._ranges()}"
            )
        total = self._nodes[expected[0]]
        for node in expected[1:]:
            total = total.merge(self._nodes[node])
        return total

    def _insert(self, level: int, index: int, statistics: LayerStatistics) -> None:
        for up in range(64 - level):
            if (level + up, index >> up) in self._nodes:
                raise ValueError(f"statistics of shard {index << level} were added twice")
        while (sibling := self._nodes.pop((level, index ^ 1), None)) is not None:
            left, right = (sibling, statistics) if index & 1 else (statistics, sibling)
            statistics = left.merge(right)
            level, index = level + 1, index >> 1
        self._nodes[level, index] = statistics

    def _ranges(self) -> str:
        spans = sorted((i << level, ((i + 1) << level) - 1) for level, i in self._nodes)
        return ", ".join(f"{a}" if a == b else f"{a}..{b}" for a, b in spans[:8]) or "none"


def _roots(num_shards: int) -> Iterator[tuple[int, int]]:
    """The nodes, left to right, of the fewest full subtrees that cover 0..num_shards - 1."""
    start = 0
    for level in range(num_shards.bit_length() - 1, -1, -1):
        if num_shards >> level & 1:
            yield level, start >> level
            start += 1 << level
