"""The order of a shuffled epoch, as pure functions of seed, epoch and sizes.

An epoch visits all runs of records in a random order, dealt out to the readers. Each reader gathers
its runs into windows, and the vectors of a window are shuffled again.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# What a random order is for: orders for different purposes are independent.
RUNS, ROWS = 0, 1


def random_order(
    count: int, seed: int, purpose: int, epoch: int, window: int = 0
) -> NDArray[np.int64]:
    """[count] int64, a random order of 0..count - 1; the same in every version of numpy.

    Generators may change with numpy's version, the raw bits of Philox may not.
    """
    generator = np.random.Philox(
        key=np.array([seed, purpose], np.uint64),
        counter=np.array([0, window, epoch, 0], np.uint64),
    )
    # Sorting bits that end with the place is five times as fast as asking for the order.
    bits = np.uint64(count.bit_length())
    places = np.arange(count, dtype=np.uint64)
    keys = generator.random_raw(count) >> bits << bits | places
    keys.sort()
    return (keys & (np.uint64(1) << bits) - np.uint64(1)).astype(np.int64)


def deal(sizes: Sequence[int], readers: int) -> list[list[int]]:
    """Deals items to readers in order, each to the reader that has least; the first if several.

    Args:
        sizes: of the items.
        readers: how many there are.

    Returns:
        For each reader the places of its items, ascending. The readers' sums differ by no more than
        the largest size.
    """
    dealt: list[list[int]] = [[] for _ in range(readers)]
    least = [(0, reader) for reader in range(readers)]
    for item, size in enumerate(sizes):
        total, reader = least[0]
        dealt[reader].append(item)
        heapq.heapreplace(least, (total + size, reader))
    return dealt


def windows(sizes: Sequence[int], window: int) -> list[slice]:
    """Cuts items in order into windows, each the fewest items of together at least `window`.

    Args:
        sizes: of the items.
        window: the size aimed at; the last window may be smaller.
    """
    cuts = []
    first = total = 0
    for item, size in enumerate(sizes, start=1):
        total += size
        if total >= window or item == len(sizes):
            cuts.append(slice(first, item))
            first, total = item, 0
    return cuts
