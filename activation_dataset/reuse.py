"""Arrays that are used again once nobody looks at them any more.

Fresh memory of some megabytes costs as much as filling it: the kernel clears every page.
"""

from __future__ import annotations

import math
import sys
from threading import Lock, local
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_LINE_BYTES = 64  # of a cache


class ReusedArrays:
    """Gives out arrays; one that the caller has dropped, with all views of it, is given out again.

    Args:
        kept: how many to remember at most.
    """

    def __init__(self, kept: int = 4) -> None:
        self._kept = kept
        self._arrays: list[NDArray[np.uint8]] = []
        self._lock = Lock()

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of that shape and dtype, from a cache line on, with anything in it."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._lock:
            array = self._free(size + _LINE_BYTES)
            start = -array.ctypes.data % _LINE_BYTES
            return array[start : start + size].view(dtype).reshape(shape)

    def _free(self, size: int) -> NDArray[np.uint8]:
        for place in range(len(self._arrays)):
            # Held by the list and by the call. Whoever holds a view adds to that.
            if sys.getrefcount(self._arrays[place]) == 2:
                if len(self._arrays[place]) < size:
                    self._arrays[place] = np.empty(2 * size, np.uint8)
                return self._arrays[place]
        new = np.empty(size, np.uint8)
        if len(self._arrays) < self._kept:
            self._arrays.append(new)
        return new


class Scratch(local):
    """A buffer of each thread's own, overwritten at every use."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """[size] uint8, with anything in it."""
        if len(self._buffer) < size:
            self._buffer = np.empty(size, np.uint8)
        return self._buffer[:size]


def windows(block: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """[n, width]: the `width` bytes from each position on, without a copy."""
    return np.ndarray((len(block) - width + 1, width), np.uint8, block, strides=(1, 1))
