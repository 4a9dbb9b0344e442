"""The order of a shuffled epoch, and its windows in memory.

An epoch visits all chunks of records in a random order, dealt out to the readers. Each reader
gathers its chunks into windows, and shuffles the vectors of each window.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.reading.shards import Chunk, Shards
from activation_dataset.sites import Site
from activation_dataset.storage_dtype import to_float32

Norms = tuple[float, float]
"""Smallest and largest norm of the vectors to keep."""

# Purposes of random orders. Orders of different purposes are independent.
CHUNKS, ROWS = 0, 1

_NORM_ROWS = 128


def random_order(
    count: int, seed: int, purpose: int, epoch: int, window: int = 0
) -> NDArray[np.int64]:
    """Return a random permutation of 0..count - 1, [count] int64, the same in every numpy version.

    Generators may change between numpy versions. The raw bits of Philox do not.
    """
    generator = np.random.Philox(
        key=np.array([seed, purpose], np.uint64),
        counter=np.array([0, window, epoch, 0], np.uint64),
    )
    # Sorting random bits that end with the position is five times as fast as argsort.
    bits = np.uint64(count.bit_length())
    positions = np.arange(count, dtype=np.uint64)
    keys = generator.random_raw(count) >> bits << bits | positions
    keys.sort()
    return (keys & (np.uint64(1) << bits) - np.uint64(1)).astype(np.int64)


def deal(sizes: Sequence[int], readers: int) -> list[list[int]]:
    """Deal the positions of items in order, each to the reader with the smallest sum of sizes."""
    dealt: list[list[int]] = [[] for _ in range(readers)]
    sums = [(0, reader) for reader in range(readers)]
    for item, size in enumerate(sizes):
        total, reader = sums[0]
        dealt[reader].append(item)
        heapq.heapreplace(sums, (total + size, reader))
    return dealt


def windows(sizes: Sequence[int], window: int) -> list[slice]:
    """Cut items in order into windows, each the fewest items with a sum of at least `window`."""
    cuts = []
    first = total = 0
    for item, size in enumerate(sizes, start=1):
        total += size
        if total >= window or item == len(sizes):
            cuts.append(slice(first, item))
            first, total = item, 0
    return cuts


@dataclass(frozen=True, eq=False)
class Window:
    """Vectors in memory.

    Attributes:
        stored, numbers: [sites, n, hidden] of the storage dtype, and [n] int64.
        order: [k] int64, the vectors to give out, in this order; k < n if norms leave some out.
    """

    stored: NDArray[Any]
    numbers: NDArray[np.int64]
    order: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Part:
    """Wanted vectors of a chunk: the rows [k] int64, ascending, or None for all."""

    chunk: Chunk
    rows: NDArray[np.int64] | None

    @property
    def size(self) -> int:
        return len(self.chunk.numbers) if self.rows is None else len(self.rows)


class WindowReader:
    """Plans the windows of each epoch and reads them. Arguments are those of `Batches`."""

    def __init__(
        self,
        shards: Shards,
        sites: Sequence[Site],
        only: NDArray[np.int64] | None,
        norms: Mapping[Site, Norms],
        window: int,
        seed: int,
        world_size: int,
    ) -> None:
        self._shards, self._sites, self._norms = shards, tuple(sites), dict(norms)
        self._window, self._seed, self._readers = window, seed, world_size
        chunks = [
            chunk for shard in range(len(shards.metadata.shards)) for chunk in shards.chunks(shard)
        ]
        self._parts = [part for chunk in chunks if (part := _part_of(chunk, only)).size]
        sizes = [part.size for part in self._parts]
        self._capacity = min(sum(sizes), window + max(sizes, default=0))
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    def sizes(self, epoch: int) -> list[int]:
        """Return the number of vectors that each reader reads, before norms leave some out."""
        return [sum(self._parts[part].size for part in dealt) for dealt in self._plan(epoch)]

    def windows(self, epoch: int, reader: int) -> list[list[int]]:
        """Return the windows of one reader, each as positions of the parts to read."""
        dealt = self._plan(epoch)[reader]
        sizes = [self._parts[part].size for part in dealt]
        return [dealt[cut] for cut in windows(sizes, self._window)]

    def window_sizes(self, epoch: int, reader: int) -> list[int]:
        """Return the number of vectors of each window, before norms leave some out."""
        return [sum(self._parts[p].size for p in parts) for parts in self.windows(epoch, reader)]

    def memory(self) -> NDArray[Any]:
        """Return uninitialized memory for any window: [sites, capacity, hidden]."""
        return self._shards.stored_vectors(self._sites, self._capacity)

    def load(self, memory: NDArray[Any], epoch: int, reader: int, window: int) -> Window:
        """Read a window, given by its position in `windows`, into memory."""
        parts = [self._parts[part] for part in self.windows(epoch, reader)[window]]
        ends = np.cumsum([part.size for part in parts]).tolist()
        stored = memory[:, : ends[-1]]
        numbers = np.empty(ends[-1], np.int64)

        def read(item: int) -> None:
            part = parts[item]
            place = slice(ends[item] - part.size, ends[item])
            first = part.chunk.numbers.start
            numbers[place] = first + (np.arange(part.size) if part.rows is None else part.rows)
            for site, rows in zip(self._sites, stored, strict=True):
                self._read(site, part, rows[place])

        with ThreadPoolExecutor(self._shards.folder.parallel_reads, "read") as pool:
            list(pool.map(read, range(len(parts))))
        self._shards.check_unchanged()
        order = random_order(ends[-1], self._seed, ROWS, epoch, window)
        for site, rows in zip(self._sites, stored, strict=True):
            if site in self._norms:
                least, largest = self._norms[site]
                norms = norms_of(rows)[order]
                order = order[(norms >= least) & (norms <= largest)]
        return Window(stored, numbers, order)

    def _make_plan(self, epoch: int) -> list[list[int]]:
        order = random_order(len(self._parts), self._seed, CHUNKS, epoch).tolist()
        dealt = deal([self._parts[part].size for part in order], self._readers)
        return [[order[place] for place in places] for places in dealt]

    def _read(self, site: Site, part: _Part, out: NDArray[Any]) -> None:
        chunk = part.chunk
        file = self._shards.layer_file(site, chunk.shard)
        if part.rows is None:
            file.read(chunk.first, chunk.last, out)
        else:
            rows = np.empty((len(chunk.numbers), out.shape[1]), out.dtype)
            file.read(chunk.first, chunk.last, rows)
            out[...] = rows[part.rows]


def norms_of(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return the Euclidean norms, [n] float32, of stored vectors; NaN for a NaN."""
    norms = np.empty(len(stored), np.float32)
    for start in range(0, len(stored), _NORM_ROWS):
        rows = to_float32(stored[start : start + _NORM_ROWS])
        np.einsum("ij,ij->i", rows, rows, out=norms[start : start + len(rows)])
    return np.sqrt(norms)


def _part_of(chunk: Chunk, only: NDArray[np.int64] | None) -> _Part:
    if only is None:
        return _Part(chunk, None)
    start, stop = chunk.numbers.start, chunk.numbers.stop
    first, last = np.searchsorted(only, [start, stop]).tolist()
    return _Part(chunk, None if last - first == stop - start else only[first:last] - start)
