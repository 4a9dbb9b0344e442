"""The statistics of vectors that stream by: while writing, and again when verifying.

Every result is a pure function of the sequence of vectors, to the last bit and on any machine: only
elementwise IEEE operations and numpy's sums are used, whose order follows from the number of rows
and columns alone (no BLAS, and no einsum, whose bits depend on the CPU and its threads).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.elements import put
from activation_dataset.norms import NormHistogram
from activation_dataset.statistics import Float64Array, LayerStatistics

Float32Array = NDArray[np.float32]

BLOCK_ROWS = 128
"""Rows that are summed in float32; part of the format, since the last bits depend on it."""

GROUP_BLOCKS = 16
"""Blocks that are joined at once; part of the format too."""

# Where the squared mean is this many times the variance, float32 sums of squares lose too much.
_MAX_CANCELLATION = 16.0
# Squares of norms within these bounds neither overflow nor vanish in float32.
_SAFE_SQUARES = (1e-30, 1e30)


class StatisticsBuilder:
    """Statistics of vectors that arrive in pieces, whatever the pieces.

    Sums run in float32 over blocks of `BLOCK_ROWS` rows, in float64 for the columns and blocks
    where that would lose precision; blocks are joined in float64. The relative error of a variance
    stays below some 1e-6 even where the mean is far larger than the deviation.
    """

    def __init__(self, hidden: int) -> None:
        self._total = LayerStatistics.empty(hidden)
        self._pending = np.empty((BLOCK_ROWS, hidden), np.float32)
        self._rows = 0
        self._scratch = np.empty((BLOCK_ROWS, hidden), np.float32)
        self._group: list[_Moments] = []

    def update(self, rows: NDArray[Any]) -> None:
        """Adds rows [n, hidden], float32 or uint16 with bfloat16's bits; they are not kept."""
        hidden = self._pending.shape[1]
        if rows.ndim != 2 or rows.shape[1] != hidden:
            raise ValueError(f"rows have shape {rows.shape}, expected [n, {hidden}]")
        # The order of a sum follows from the shape only where rows lie one behind the other.
        usable = rows.dtype == np.float32 and rows.flags.c_contiguous and rows.flags.aligned
        position = 0
        while position < len(rows):
            taken = min(BLOCK_ROWS - self._rows, len(rows) - position)
            piece = rows[position : position + taken]
            position += taken
            if usable and taken == BLOCK_ROWS:
                self._add(piece)
                continue
            put(piece, self._pending[self._rows : self._rows + taken])
            self._rows += taken
            if self._rows == BLOCK_ROWS:
                self._add(self._pending)
                self._rows = 0

    def result(self) -> LayerStatistics:
        """Statistics of all rows so far. More may follow."""
        total = self._total.merge(_joined(self._group)) if self._group else self._total
        if not self._rows:
            return total
        last = self._pending[: self._rows]
        moments = _moments(last, self._scratch)
        return total.merge(_joined([moments]) if moments else _extreme_statistics(last))

    def _add(self, block: Float32Array) -> None:
        moments = _moments(block, self._scratch)
        if moments:
            self._group.append(moments)
        if self._group and (not moments or len(self._group) == GROUP_BLOCKS):
            self._total = self._total.merge(_joined(self._group))
            self._group = []
        if not moments:
            self._total = self._total.merge(_extreme_statistics(block))


@dataclass(frozen=True, eq=False)
class _Moments:
    """Of the vectors of one block, all finite.

    Attributes:
        mean, variance: [hidden] float64.
        squares: [vectors] float32, the squared norms.
    """

    mean: Float64Array
    variance: Float64Array
    squares: Float32Array


def _moments(block: Float32Array, scratch: Float32Array) -> _Moments | None:
    """Of one block [n, hidden], 1 <= n <= BLOCK_ROWS; None if its elements are not for float32.

    `scratch` is at least as large; both are C-contiguous.
    """
    count = len(block)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squared = np.multiply(block, block, out=scratch[:count])
        squares = np.add.reduce(squared, axis=1)
        low, high = _SAFE_SQUARES
        if not (low < squares.min() and squares.max() < high):  # a NaN is neither
            return None
    mean = np.add.reduce(block, axis=0).astype(np.float64)
    mean /= count
    squared_mean = mean * mean
    variance = np.add.reduce(squared, axis=0).astype(np.float64)
    variance /= count
    variance -= squared_mean
    narrow = np.flatnonzero(squared_mean > _MAX_CANCELLATION * variance)
    if len(narrow):
        columns = np.take(block, narrow, axis=1).astype(np.float64)
        mean[narrow], variance[narrow] = _mean_and_variance(columns)
    return _Moments(mean, variance, squares)


def _joined(group: list[_Moments]) -> LayerStatistics:
    """Of blocks of equally many vectors."""
    means = np.stack([block.mean for block in group])
    mean, variance = _mean_and_variance(means)
    variance += _mean([block.variance for block in group])
    return _statistics(mean, variance, np.concatenate([block.squares for block in group]))


def _extreme_statistics(block: Float32Array) -> LayerStatistics:
    """Of a block [n, hidden] with extreme or non-finite elements, in float64."""
    finite = np.isfinite(block).all(axis=1)
    nonfinite_count = int(len(block) - np.count_nonzero(finite))
    rows = block[finite].astype(np.float64)
    if not len(rows):
        return replace(LayerStatistics.empty(block.shape[1]), nonfinite_count=nonfinite_count)
    squares = np.add.reduce(rows * rows, axis=1)
    statistics = _statistics(*_mean_and_variance(rows), squares)
    return replace(statistics, nonfinite_count=nonfinite_count)


def _mean(rows: Any) -> Any:
    """Over the first axis."""
    return np.add.reduce(rows, axis=0) / len(rows)


def _mean_and_variance(rows: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Of each column of [n, columns]; around the mean, so that nothing cancels."""
    mean = _mean(rows)
    deviations = rows - mean
    return mean, _mean(np.square(deviations, out=deviations))


def _statistics(
    mean: Float64Array, variance: Float64Array, squares: NDArray[np.floating]
) -> LayerStatistics:
    """From mean and variance [hidden] and the squared norms [n] of the same vectors."""
    squares = squares.astype(np.float64)
    norms = np.sqrt(squares)
    return LayerStatistics(
        count=len(norms),
        nonfinite_count=0,
        mean=mean,
        variance=variance,
        mean_norm=float(_mean(norms)),
        mean_squared_norm=float(_mean(squares)),
        max_norm=float(norms.max()),
        norm_histogram=NormHistogram.of(norms),
    )
