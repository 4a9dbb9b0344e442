"""Means, variances and squared norms of blocks of vectors.

Only elementwise IEEE operations and numpy's sums are used, whose order follows from the number of
rows and columns alone (no BLAS, and no einsum, whose bits depend on the CPU and its threads).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset import native
from activation_dataset.elements import put

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

# Where the squared mean is this many times the variance, float32 sums of squares lose too much.
_MAX_CANCELLATION = 16.0
# Squares of norms within these bounds neither overflow nor vanish in float32.
_SAFE_SQUARES = (1e-30, 1e30)


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the vectors of blocks, all finite.

    Attributes:
        mean, variance: [blocks, hidden] float64.
        squares: [blocks, rows] float32, the squared norms.
    """

    mean: Float64Array
    variance: Float64Array
    squares: Float32Array

    @classmethod
    def empty(cls, blocks: int, rows: int, hidden: int) -> Moments:
        """To be filled."""
        return cls(
            np.empty((blocks, hidden)),
            np.empty((blocks, hidden)),
            np.empty((blocks, rows), np.float32),
        )

    def part(self, start: int, stop: int) -> Moments:
        """Of the blocks start to stop - 1; a view."""
        blocks = slice(start, stop)
        return Moments(self.mean[blocks], self.variance[blocks], self.squares[blocks])


class VectorBlocks(ctypes.Structure):
    """Vectors on their way to moments, in blocks, as native/known_records.cc has it.

    Attributes:
        filled: bytes of the block that is being filled.
        measured: blocks whose moments are there.
    """

    filled: int
    measured: int
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("bfloat16", "hidden", "rows", "blocks")),
        *((name, ctypes.c_int64) for name in ("filled", "measured")),
        *((name, ctypes.c_float) for name in ("least_square", "largest_square")),
        ("cancellation", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("block", "mean", "variance", "squares")),
    )

    @classmethod
    def of(cls, block: NDArray[Any], into: Moments) -> VectorBlocks:
        """Of a block [rows, hidden], as for `measure`, and as many as there is room for."""
        memory = (block, into.mean, into.variance, into.squares)
        return cls(
            block.dtype == np.uint16,
            block.shape[1],
            len(block),
            len(into.mean),
            0,
            0,
            *_SAFE_SQUARES,
            _MAX_CANCELLATION,
            *map(native.address, memory),
        )


def measure(blocks: NDArray[Any], into: Moments) -> int:
    """Fills in the moments of blocks, up to the first whose elements are not for float32.

    Args:
        blocks: [n, rows, hidden], C-contiguous, float32 or uint16 with bfloat16's bits.
        into: of at least as many blocks.

    Returns:
        How many blocks were done.
    """
    if native.library is None:
        return _measure(blocks, into)
    done: int = native.library.Moments(
        native.address(blocks),
        blocks.dtype == np.uint16,
        *blocks.shape,
        *_SAFE_SQUARES,
        _MAX_CANCELLATION,
        native.address(into.mean),
        native.address(into.variance),
        native.address(into.squares),
    )
    return done


def mean(rows: NDArray[Any]) -> Any:
    """Over the first axis."""
    return np.add.reduce(rows, axis=0) / len(rows)


def mean_and_variance(rows: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Of each column of [n, columns]; around the mean, so that nothing cancels."""
    center = mean(rows)
    deviations = rows - center
    return center, mean(np.square(deviations, out=deviations))


def _measure(blocks: NDArray[Any], into: Moments) -> int:
    squared = np.empty(blocks.shape[1:], np.float32)
    widened = np.empty_like(squared)
    for number, stored in enumerate(blocks):
        block = stored
        if stored.dtype != np.float32:
            block = widened
            put(stored, block)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            np.multiply(block, block, out=squared)
            squares = np.add.reduce(squared, axis=1, out=into.squares[number])
            low, high = _SAFE_SQUARES
            if not (low < squares.min() and squares.max() < high):  # a NaN is neither
                return number
        into.mean[number], into.variance[number] = _mean_and_variance_of(block, squared)
    return len(blocks)


def _mean_and_variance_of(
    block: Float32Array, squared: Float32Array
) -> tuple[Float64Array, Float64Array]:
    """[hidden] each, of a block [rows, hidden], from sums in float32 where they are exact enough.

    `squared` has the squares of its elements.
    """
    center = np.add.reduce(block, axis=0).astype(np.float64)
    center /= len(block)
    squared_mean = center * center
    variance = np.add.reduce(squared, axis=0).astype(np.float64)
    variance /= len(block)
    variance -= squared_mean
    narrow = np.flatnonzero(squared_mean > _MAX_CANCELLATION * variance)
    if len(narrow):
        columns = np.take(block, narrow, axis=1).astype(np.float64)
        center[narrow], variance[narrow] = mean_and_variance(columns)
    return center, variance
