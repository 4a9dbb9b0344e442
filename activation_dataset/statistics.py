"""Statistics of the vectors of a site in float64, and their merges."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.fields import to_json
from activation_dataset.norms import NormHistogram
from activation_dataset.storage_dtype import to_float32

Float64Array = NDArray[np.float64]

TOLERANCE = 1e-4
"""Allowed relative error of float32 sums over one step; see docs/reference/format.md."""

# Size of the float64 chunks in `of_vectors`.
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics of the vectors of one site. Vectors with a NaN or an infinity are only counted.

    All values are 0 if `count` is 0. All norms are Euclidean.

    Attributes:
        count: number of vectors whose elements are all finite.
        nonfinite_count: number of all other vectors.
        mean: [hidden] float64.
        variance: [hidden] float64, mean squared deviation from the mean.
        mean_norm: mean of the norms.
        mean_squared_norm: mean of the squared norms.
        max_norm: largest norm.
        norm_histogram: histogram of the norms.
    """

    count: int
    nonfinite_count: int
    mean: Float64Array
    variance: Float64Array
    mean_norm: float
    mean_squared_norm: float
    max_norm: float
    norm_histogram: NormHistogram

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.variance):
            raise ValueError(
                f"variance has {len(self.variance)} elements, but mean has {len(self.mean)}"
            )
        if (total := self.norm_histogram.total) != self.count:
            raise ValueError(f"norm_histogram counts {total} norms, but count is {self.count}")

    @classmethod
    def empty(cls, hidden: int, nonfinite_count: int = 0) -> LayerStatistics:
        """Return the statistics of a site of this width without finite vectors."""
        zeros = np.zeros(hidden)
        return cls(0, nonfinite_count, zeros, zeros, 0.0, 0.0, 0.0, NormHistogram())

    @classmethod
    def of_moments(
        cls, mean: NDArray[Any], m2: NDArray[Any], norms: NDArray[Any]
    ) -> LayerStatistics:
        """Return the statistics of one step from moments that a device computed.

        Args:
            mean: [hidden] float32 or float64, mean of the finite vectors.
            m2: [hidden] float32 or float64, sum of the squared deviations from the mean.
            norms: [n] float32 or float64, Euclidean norm of each vector; NaN for a non-finite
                vector.

        Raises:
            OverflowError: if a moment is not finite, because squares overflowed in float32. Use
                `of_vectors` for these vectors.
        """
        finite = norms[~np.isnan(norms)].astype(np.float64)
        nonfinite_count = len(norms) - len(finite)
        if not len(finite):
            return cls.empty(len(mean), nonfinite_count)
        moments = (mean, m2, finite)
        if not all(np.isfinite(each).all() for each in moments):
            raise OverflowError("moments in float32 overflowed, use LayerStatistics.of_vectors")
        return cls(
            count=len(finite),
            nonfinite_count=nonfinite_count,
            mean=mean.astype(np.float64),
            variance=m2.astype(np.float64) / len(finite),
            mean_norm=float(finite.mean()),
            mean_squared_norm=float(np.square(finite).mean()),
            max_norm=float(finite.max()),
            norm_histogram=NormHistogram.of(finite),
        )

    @classmethod
    def of_vectors(cls, vectors: NDArray[Any]) -> LayerStatistics:
        """Compute the statistics of stored vectors [n, row elements], see `storage_dtype`."""
        hidden = to_float32(vectors[:0]).shape[1]
        rows = max(1, _CHUNK_BYTES // (8 * hidden))
        total = cls.empty(hidden)
        for start in range(0, len(vectors), rows):
            stored = to_float32(vectors[start : start + rows])
            finite = np.isfinite(stored).all(axis=1)
            chunk = (stored if finite.all() else stored[finite]).astype(np.float64)
            norms = np.full(len(stored), np.nan)
            norms[finite] = np.sqrt(np.square(chunk).sum(axis=1))
            mean = chunk.sum(axis=0) / max(1, len(chunk))
            m2 = np.square(chunk - mean).sum(axis=0)
            total = total.merge(cls.of_moments(mean, m2, norms))
        return total

    @property
    def hidden(self) -> int:
        """Number of elements of a vector."""
        return len(self.mean)

    def merge(self, other: LayerStatistics) -> LayerStatistics:
        """Return the statistics of the vectors of both operands (Chan, Golub, LeVeque 1979).

        The counts are exact. The last bits of the other values depend on the order of the operands.
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

    def differences(self, exact: LayerStatistics) -> list[str]:
        """Return the differences from exact statistics that float32 rounding does not explain.

        Args:
            exact: result of `of_vectors` for the same vectors.

        Returns:
            One message for each field, beginning with its name.
        """
        found = [
            f"{name} is {getattr(self, name)}, but the vectors give {getattr(exact, name)}"
            for name in ("count", "nonfinite_count")
            if getattr(self, name) != getattr(exact, name)
        ]
        mean_square = np.square(exact.mean) + exact.variance
        tolerances = {
            "mean": TOLERANCE * np.sqrt(mean_square),
            "variance": TOLERANCE * exact.variance + TOLERANCE**2 * mean_square,
            "mean_norm": TOLERANCE * exact.mean_norm,
            "mean_squared_norm": TOLERANCE * exact.mean_squared_norm,
            "max_norm": TOLERANCE * exact.max_norm,
        }
        for name, tolerance in tolerances.items():
            error = np.abs(getattr(self, name) - getattr(exact, name))
            if (error > tolerance).any():
                found.append(f"{name} is off by up to {np.max(error):.3g}")
        if not self.norm_histogram.near(exact.norm_histogram):
            found.append("norm_histogram has norms that are more than one bin off")
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerStatistics) and to_json(self) == to_json(other)


@dataclass
class OrderedMerge:
    """Merge of the statistics of shards 0..n-1. The order of arrival does not change any bit.

    The merges form a fixed binary tree over the shard numbers. Two siblings are merged as soon as
    both have arrived. At most log2(n) nodes wait if the shards arrive in order, and n/2 in the
    worst order.
    """

    _nodes: dict[tuple[int, int], LayerStatistics] = field(default_factory=dict)
    """Statistics of shards index * 2^level..(index + 1) * 2^level - 1, by (level, index)."""

    def add(self, shard: int, statistics: LayerStatistics) -> None:
        """Add a shard. Each shard may be added only once."""
        self._insert(0, shard, statistics)

    def merge(self, other: OrderedMerge) -> None:
        """Add all shards of `other`."""
        for (level, index), statistics in other._nodes.items():
            self._insert(level, index, statistics)

    def result(self, num_shards: int) -> LayerStatistics:
        """Return the statistics of shards 0..num_shards - 1.

        Raises:
            ValueError: if more or fewer shards were added.
        """
        nodes = sorted(self._nodes, key=lambda node: node[1] << node[0])
        found = sum(1 << level for level, _ in nodes)
        if found != num_shards or not nodes:
            raise ValueError(f"expected statistics of {num_shards} shards, got {found}")
        return reduce(LayerStatistics.merge, (self._nodes[node] for node in nodes))

    def _insert(self, level: int, index: int, statistics: LayerStatistics) -> None:
        while (sibling := self._nodes.pop((level, index ^ 1), None)) is not None:
            left, right = (sibling, statistics) if index & 1 else (statistics, sibling)
            statistics = left.merge(right)
            level, index = level + 1, index >> 1
        self._nodes[level, index] = statistics
