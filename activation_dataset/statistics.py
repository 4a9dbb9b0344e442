"""Statistics of a layer's vectors: computed while writing, recomputed when verifying.

Every result is a pure function of the sequence of vectors, to the last bit and on any machine:
only elementwise IEEE operations are used, in an order fixed by the number of rows and columns (no
BLAS, no reduction whose order depends on the CPU).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.fields import FieldError, Fields
from activation_dataset.format import to_float32
from activation_dataset.norms import NormHistogram

Float64Array = NDArray[np.float64]

BLOCK_ROWS = 128
"""Rows that are summed together; part of the format, since the last bits depend on it."""

_STRIP_COLUMNS = 128
# Where the squared mean is this many times the variance, float32 sums of squares lose too much.
_MAX_CANCELLATION = 16.0
# Norms are counted for this many blocks together.
_BLOCKS_COUNTED = 64
# Squares of norms within these bounds neither overflow nor vanish in float32.
_SAFE_SQUARES = (1e-30, 1e30)


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


class StatisticsBuilder:
    """Statistics of vectors that arrive in pieces, whatever the pieces.

    Sums run in float32 over blocks of `BLOCK_ROWS` rows, as balanced trees, and in float64 for
    columns and blocks where that would lose precision; blocks are merged in float64. The relative
    error of a variance stays below some 1e-6 even where the mean is far larger than the deviation.
    """

    def __init__(self, hidden: int) -> None:
        self._total = LayerStatistics.empty(hidden)
        self._pending = np.empty((BLOCK_ROWS, hidden), np.float32)
        self._rows = 0
        self._scratch = np.empty((BLOCK_ROWS, hidden), np.float32)
        self._norms: list[Float64Array] = []

    def update(self, rows: NDArray[Any]) -> None:
        """Adds rows [n, hidden], float32 or uint16 with bfloat16's bits; they are not kept."""
        hidden = self._pending.shape[1]
        if rows.ndim != 2 or rows.shape[1] != hidden:
            raise ValueError(f"rows have shape {rows.shape}, expected [n, {hidden}]")
        position = 0
        while position < len(rows):
            taken = min(BLOCK_ROWS - self._rows, len(rows) - position)
            piece = to_float32(rows[position : position + taken])
            position += taken
            if taken == BLOCK_ROWS:
                self._add(piece)
                continue
            self._pending[self._rows : self._rows + taken] = piece
            self._rows += taken
            if self._rows == BLOCK_ROWS:
                self._add(self._pending)
                self._rows = 0

    def result(self) -> LayerStatistics:
        """Statistics of all rows so far. More may follow."""
        total, norms = self._total, self._norms
        if self._rows:
            last, last_norms = _block_statistics(self._pending[: self._rows], self._scratch)
            total, norms = total.merge(last), [*norms, last_norms]
        return _with_norms(total, norms)

    def _add(self, block: NDArray[np.float32]) -> None:
        statistics, norms = _block_statistics(block, self._scratch)
        self._total = self._total.merge(statistics)
        self._norms.append(norms)
        if len(self._norms) == _BLOCKS_COUNTED:
            self._total, self._norms = _with_norms(self._total, self._norms), []


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


def _with_norms(statistics: LayerStatistics, norms: list[Float64Array]) -> LayerStatistics:
    """The statistics with more norms in their histogram, which it did not count so far."""
    more = NormHistogram.of(np.concatenate([np.empty(0), *norms]))
    return replace(statistics, norm_histogram=statistics.norm_histogram.merge(more))


def _block_statistics(
    block: NDArray[np.float32], scratch: NDArray[np.float32]
) -> tuple[LayerStatistics, Float64Array]:
    """Of one block [n, hidden], 1 <= n <= BLOCK_ROWS; `scratch` is at least as large.

    Returns the statistics, whose histogram is empty, and the norms [finite vectors] float64.
    """
    count = len(block)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squared = np.multiply(block, block, out=scratch[:count])
        squares = _sum_columns(squared).astype(np.float64)
        low, high = _SAFE_SQUARES
        if not ((squares > low) & (squares < high)).all():
            return _wide_block_statistics(block)
        mean = _sum_rows(block).astype(np.float64) / count
        variance = _fold_rows(squared).astype(np.float64) / count - mean * mean
    narrow = np.flatnonzero(mean * mean > _MAX_CANCELLATION * variance)
    if len(narrow):
        mean[narrow], variance[narrow] = _mean_and_variance(block[:, narrow].astype(np.float64))
    return _finite_statistics(0, mean, variance, squares)


def _wide_block_statistics(
    block: NDArray[np.float32],
) -> tuple[LayerStatistics, Float64Array]:
    """As `_block_statistics`, in float64, for blocks with extreme or non-finite elements."""
    finite = np.isfinite(block).all(axis=1)
    nonfinite_count = int(len(block) - np.count_nonzero(finite))
    rows = block[finite].astype(np.float64)
    if not len(rows):
        empty = LayerStatistics.empty(block.shape[1])
        return replace(empty, nonfinite_count=nonfinite_count), np.empty(0)
    return _finite_statistics(nonfinite_count, *_mean_and_variance(rows), _sum_columns(rows * rows))


def _mean_and_variance(rows: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Of each column of [n, columns]; around the mean, so that nothing cancels."""
    mean = _sum_rows(rows) / len(rows)
    deviations = rows - mean
    return mean, _fold_rows(deviations * deviations) / len(rows)


def _finite_statistics(
    nonfinite_count: int, mean: Float64Array, variance: Float64Array, squares: Float64Array
) -> tuple[LayerStatistics, Float64Array]:
    """From mean and variance [hidden] and the squared norms [n] of the same vectors."""
    count = len(squares)
    norms = np.sqrt(squares)
    statistics = LayerStatistics(
        count=count,
        nonfinite_count=nonfinite_count,
        mean=mean,
        variance=variance,
        mean_norm=float(_sum_rows(norms) / count),
        mean_squared_norm=float(_sum_rows(squares) / count),
        max_norm=float(norms.max()),
        norm_histogram=NormHistogram(),
    )
    return statistics, norms


def _sum_rows(values: NDArray[Any]) -> Any:
    """Sum over the first axis, as a balanced tree."""
    count = len(values)
    half = (count + 1) // 2
    sums = values[:half].copy()
    sums[: count - half] += values[half:]
    return _fold_rows(sums)


def _fold_rows(values: NDArray[Any]) -> Any:
    """As `_sum_rows`, but overwrites `values`."""
    count = len(values)
    while count > 1:
        half = (count + 1) // 2
        values[: count - half] += values[half:count]
        count = half
    return values[0]


def _sum_columns(values: NDArray[Any]) -> NDArray[Any]:
    """Sum over the second axis: strips of columns one after the other, then a balanced tree."""
    width = min(_STRIP_COLUMNS, values.shape[1])
    sums = values[:, :width].copy()
    for start in range(width, values.shape[1], width):
        strip = values[:, start : start + width]
        sums[:, : strip.shape[1]] += strip
    return np.array(_fold_rows(np.ascontiguousarray(sums.T)))
