"""The statistics of vectors that stream by: while writing, and again when verifying.

Every result is a pure function of the sequence of vectors, to the last bit and on any machine: as
are the moments of blocks (`moments.py`), and what joins them here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import to_float32
from activation_dataset.moments import Moments, VectorBlocks, mean, mean_and_variance, measure
from activation_dataset.norms import NormHistogram
from activation_dataset.statistics import Float64Array, LayerStatistics

BLOCK_ROWS = 128
"""Rows that are summed in float32; part of the format, since the last bits depend on it."""

GROUP_BLOCKS = 16
"""Blocks that are joined at once; part of the format too."""


class StatisticsBuilder:
    """Statistics of vectors that arrive in pieces, whatever the pieces.

    Sums run in float32 over blocks of `BLOCK_ROWS` rows, in float64 for the columns and blocks
    where that would lose precision; blocks are joined in float64. The relative error of a variance
    stays below some 1e-6 even where the mean is far larger than the deviation.
    """

    def __init__(self, hidden: int) -> None:
        self._total = LayerStatistics.empty(hidden)
        self._pending: NDArray[Any] = np.empty((BLOCK_ROWS, hidden), np.float32)
        self._rows = 0
        self._group = Moments.empty(GROUP_BLOCKS, BLOCK_ROWS, hidden)
        self._blocks = 0

    def update(self, rows: NDArray[Any]) -> None:
        """Adds rows [n, hidden], float32 or uint16 with bfloat16's bits; they are not kept.

        Raises:
            ValueError: they have another shape.
            TypeError: they are neither, or not what the rows before them were.
        """
        hidden = self._pending.shape[1]
        if rows.ndim != 2 or rows.shape[1] != hidden:
            raise ValueError(f"rows have shape {rows.shape}, expected [n, {hidden}]")
        self._keep(rows.dtype)
        # The order of a sum follows from the shape only where rows lie one behind the other.
        usable = rows.flags.c_contiguous and rows.flags.aligned
        position = 0
        while position < len(rows):
            left = rows[position:]
            if usable and not self._rows and (whole := len(left) // BLOCK_ROWS):
                taken = whole * BLOCK_ROWS
                self._add(left[:taken].reshape(whole, BLOCK_ROWS, hidden))
            else:
                taken = min(BLOCK_ROWS - self._rows, len(left))
                self._pending[self._rows : self._rows + taken] = left[:taken]
                self._rows += taken
                if self._rows == BLOCK_ROWS:
                    self._add(self._pending[np.newaxis])
                    self._rows = 0
            position += taken

    def update_by(self, read: Callable[[VectorBlocks], bool], bfloat16: bool) -> None:
        """Adds rows that `read` finds, as `update` would.

        Args:
            read: fills the block and, when it is full, measures it as `measure` does, over and
                over, until it has no more rows, there is no room for more moments, or a full block
                cannot be measured and stays. It leaves whole rows, and returns whether it has more.
            bfloat16: whether the rows are bfloat16's bits, else they are float32.
        """
        self._keep(np.dtype(np.uint16 if bfloat16 else np.float32))
        vectors = VectorBlocks.of(self._pending, self._group)
        row_bytes = self._pending[0].nbytes
        more = True
        while more:
            vectors.filled, vectors.measured = self._rows * row_bytes, self._blocks
            more = read(vectors)
            self._rows, self._blocks = vectors.filled // row_bytes, vectors.measured
            extreme = self._rows == BLOCK_ROWS
            if extreme or self._blocks == GROUP_BLOCKS:
                self._join_group()
            if extreme:
                self._total = self._total.merge(_extreme(self._pending))
                self._rows = 0

    @property
    def rows_to_block(self) -> int:
        """Rows that complete the block that has been begun; 0 if none has."""
        return -self._rows % BLOCK_ROWS

    def result(self) -> LayerStatistics:
        """Statistics of all rows so far. More may follow."""
        total = self._total.merge(self._group_statistics())
        if not self._rows:
            return total
        last = self._pending[np.newaxis, : self._rows]
        moments = Moments.empty(*last.shape)
        return total.merge(_joined(moments) if measure(last, moments) else _extreme(last[0]))

    def _keep(self, dtype: np.dtype[Any]) -> None:
        if dtype not in (np.float32, np.uint16):
            raise TypeError(f"rows are {dtype}, expected float32, or uint16 with bfloat16's bits")
        if dtype != self._pending.dtype:
            if self._rows:
                raise TypeError(f"rows are {dtype} after {self._pending.dtype}")
            self._pending = np.empty(self._pending.shape, dtype)

    def _add(self, blocks: NDArray[Any]) -> None:
        """Adds blocks [n, BLOCK_ROWS, hidden]."""
        while len(blocks):
            fitting = blocks[: GROUP_BLOCKS - self._blocks]
            done = measure(fitting, self._group.part(self._blocks, GROUP_BLOCKS))
            self._blocks += done
            extreme = fitting[done : done + 1]
            if len(extreme) or self._blocks == GROUP_BLOCKS:
                self._join_group()
            for block in extreme:
                self._total = self._total.merge(_extreme(block))
            blocks = blocks[done + len(extreme) :]

    def _join_group(self) -> None:
        self._total = self._total.merge(self._group_statistics())
        self._blocks = 0

    def _group_statistics(self) -> LayerStatistics:
        if not self._blocks:
            return LayerStatistics.empty(self._pending.shape[1])
        return _joined(self._group.part(0, self._blocks))


def _joined(blocks: Moments) -> LayerStatistics:
    """Of blocks of equally many vectors."""
    center, variance = mean_and_variance(blocks.mean)
    variance += mean(blocks.variance)
    return _statistics(center, variance, blocks.squares.reshape(-1))


def _extreme(block: NDArray[Any]) -> LayerStatistics:
    """Of a block [n, hidden] with extreme or non-finite elements, in float64."""
    finite = np.isfinite(to_float32(block)).all(axis=1)
    nonfinite_count = int(len(block) - np.count_nonzero(finite))
    rows = to_float32(block[finite]).astype(np.float64)
    if not len(rows):
        return replace(LayerStatistics.empty(block.shape[1]), nonfinite_count=nonfinite_count)
    squares = np.add.reduce(rows * rows, axis=1)
    statistics = _statistics(*mean_and_variance(rows), squares)
    return replace(statistics, nonfinite_count=nonfinite_count)


def _statistics(
    center: Float64Array, variance: Float64Array, squares: NDArray[np.floating]
) -> LayerStatistics:
    """From mean and variance [hidden] and the squared norms [n] of the same vectors."""
    squares = squares.astype(np.float64)
    norms = np.sqrt(squares)
    return LayerStatistics(
        count=len(norms),
        nonfinite_count=0,
        mean=center,
        variance=variance,
        mean_norm=float(mean(norms)),
        mean_squared_norm=float(mean(squares)),
        max_norm=float(norms.max()),
        norm_histogram=NormHistogram.of(norms),
    )
