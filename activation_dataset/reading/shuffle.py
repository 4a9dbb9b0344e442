"""Order of a shuffled epoch, and its windows in memory.

An epoch visits all parts of the dataset in a random order and deals them to the readers. Each
reader gathers its parts into windows, and shuffles the vectors of each window.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.damage import DatasetError
from activation_dataset.folder import REQUEST_BYTES
from activation_dataset.layout import Numbers, runs
from activation_dataset.reading import shards as shards_module
from activation_dataset.reading.shards import Shards
from activation_dataset.record import RecordKind
from activation_dataset.sites import Site
from activation_dataset.storage_dtype import to_float32
from activation_dataset.tfrecord import CorruptRecordError

PLACES = 128
"""Smallest number of parts of a window, if the dataset and its records allow it."""

Norms = tuple[float, float]
"""Smallest and largest norm of the vectors to keep."""

# Purposes of random orders. Orders of different purposes are independent.
CHUNKS, ROWS = 0, 1

_NORM_ROWS = 128


def random_order(
    count: int, seed: int, purpose: int, epoch: int, window: int = 0
) -> NDArray[np.int64]:
    """Return a random permutation of 0..count - 1, [count] int64, equal in every numpy version.

    numpy's generators may change between versions. The raw bits of Philox do not.
    """
    generator = np.random.Philox(
        key=np.array([seed, purpose], np.uint64),
        counter=np.array([0, window, epoch, 0], np.uint64),
    )
    # Sorting random bits with the position appended is five times as fast as argsort.
    bits = np.uint64(count.bit_length())
    positions = np.arange(count, dtype=np.uint64)
    keys = generator.random_raw(count) >> bits << bits | positions
    keys.sort()
    return (keys & (np.uint64(1) << bits) - np.uint64(1)).astype(np.int64)


def deal(sizes: Sequence[int], readers: int) -> list[list[int]]:
    """Deal items in order, each to the reader with the smallest sum of sizes so far.

    Returns:
        Positions of each reader's items.
    """
    dealt: list[list[int]] = [[] for _ in range(readers)]
    sums = [(0, reader) for reader in range(readers)]
    for item, size in enumerate(sizes):
        total, reader = sums[0]
        dealt[reader].append(item)
        heapq.heapreplace(sums, (total + size, reader))
    return dealt


def windows(sizes: Numbers, window: int) -> list[slice]:
    """Cut items in order into the shortest windows whose sizes add up to at least `window`."""
    ends = np.cumsum(sizes)
    cuts, first, total = [], 0, 0
    while first < len(ends):
        last = min(int(np.searchsorted(ends, total + window)) + 1, len(ends))
        cuts.append(slice(first, last))
        first, total = last, int(ends[last - 1])
    return cuts


@dataclass(frozen=True, eq=False)
class Window:
    """Window of vectors in memory.

    Attributes:
        stored: [sites, n, hidden] of the storage dtype.
        numbers: [n] int64, numbers of the vectors.
        order: [k] int64, rows of the vectors to yield, in this order; k < n if norms exclude some.
    """

    stored: NDArray[Any]
    numbers: Numbers
    order: Numbers


@dataclass(frozen=True, eq=False)
class Parts:
    """Parts of a dataset with wanted vectors. One request reads one part.

    Attributes:
        shards: [parts] int64, shard of each part.
        firsts: [parts] int64, first record of each part.
        lasts: [parts] int64, record after the last one of each part.
        starts: [parts] int64, number of the first vector of each part.
        stops: [parts] int64, number after the last vector of each part.
        sizes: [parts] int64, number of wanted vectors of each part.
    """

    shards: Numbers
    firsts: Numbers
    lasts: Numbers
    starts: Numbers
    stops: Numbers
    sizes: Numbers

    @classmethod
    def of(cls, shards: Shards, only: Numbers | None, part_bytes: int) -> Parts:
        """Cut a dataset into parts with at most `part_bytes` of the residual stream."""
        columns: list[list[Numbers]] = []
        for shard, layout in enumerate(shards.layouts()):
            start = shards.shard_numbers(shard).start
            here = only
            if only is not None:
                stop = start + int(layout.vector_starts[-1])
                here = only[slice(*np.searchsorted(only, [start, stop]))] - start
            cut = runs(layout, shards_module.CHUNK_BYTES, part_bytes, here)
            kept = cut.wanted > 0
            numbers = np.full(len(cut.firsts), shard)
            places = (numbers, cut.firsts, cut.lasts, start + cut.starts, start + cut.stops)
            columns.append([column[kept] for column in (*places, cut.wanted)])
        if not columns:
            return cls(*[np.empty(0, np.int64)] * 6)
        return cls(*map(np.concatenate, zip(*columns, strict=True)))


@dataclass(frozen=True, eq=False)
class Plan:
    """Plan of an epoch.

    Attributes:
        parts: parts that each reader reads, in order.
        windows: for each reader, the slices of its parts that form its windows.
    """

    parts: list[Numbers]
    windows: list[list[slice]]


class WindowReader:
    """Planner and reader of the windows of each epoch. `Batches` describes the arguments."""

    def __init__(
        self,
        shards: Shards,
        sites: Sequence[Site],
        only: Numbers | None,
        norms: Mapping[Site, Norms],
        window: int,
        seed: int,
        world_size: int,
    ) -> None:
        self._shards, self._sites, self._norms, self._only = shards, tuple(sites), dict(norms), only
        self._window, self._seed, self._readers = window, seed, world_size
        wanted = shards.num_vectors if only is None else len(only)
        self.part_bytes = part_bytes(shards, min(window, wanted // world_size))
        self._parts = Parts.of(shards, only, self.part_bytes)
        self._capacity = min(self._parts.sizes.sum(), window + self._parts.sizes.max(initial=0))
        self._plan = lru_cache(maxsize=2)(self._make_plan)
        read = np.unique(self._parts.shards).tolist()
        self._stamps = shards.stamps(shards.layer_paths(self._sites, read))

    def sizes(self, epoch: int) -> list[int]:
        """Return the number of vectors that each reader reads, before norms exclude some."""
        return [int(self._parts.sizes[parts].sum()) for parts in self._plan(epoch).parts]

    def windows(self, epoch: int, reader: int) -> int:
        """Return the number of windows of one reader."""
        return len(self._plan(epoch).windows[reader])

    def window_sizes(self, epoch: int, reader: int) -> list[int]:
        """Return the number of vectors of each window, before norms exclude some."""
        plan = self._plan(epoch)
        sizes = self._parts.sizes[plan.parts[reader]]
        return [int(sizes[cut].sum()) for cut in plan.windows[reader]]

    def memory(self) -> NDArray[Any]:
        """Return uninitialized memory for any window, [sites, capacity, hidden]."""
        return self._shards.stored_vectors(self._sites, int(self._capacity))

    def begin(
        self, pool: Executor, memory: NDArray[Any], epoch: int, reader: int, window: int
    ) -> Callable[[], Window]:
        """Begin to read a window into memory, and return a function that waits for the window.

        The order of the vectors does not depend on the order of the reads.
        """
        plan = self._plan(epoch)
        parts = plan.parts[reader][plan.windows[reader][window]]
        ends = np.cumsum(self._parts.sizes[parts])
        stored = memory[:, : ends[-1]]
        numbers = np.empty(ends[-1], np.int64)
        reads = []
        for part, end in zip(parts.tolist(), ends.tolist(), strict=True):
            wanted = self._wanted(part)
            place = slice(end - len(wanted), end)
            numbers[place] = wanted
            reads += [
                pool.submit(self._read, site, part, rows[place])
                for site, rows in zip(self._sites, stored, strict=True)
            ]

        def finish() -> Window:
            order = random_order(len(numbers), self._seed, ROWS, epoch, window)
            files = self._shards.layer_paths(
                self._sites, np.unique(self._parts.shards[parts]).tolist()
            )
            stamps = {path: self._stamps[path] for path in files}
            try:
                for read in reads:
                    read.result()
            except (CorruptRecordError, DatasetError):
                self._shards.check_unchanged(stamps)  # This error is clearer if a file changed.
                raise
            self._shards.check_unchanged(stamps)
            for site, rows in zip(self._sites, stored, strict=True):
                if site in self._norms:
                    least, largest = self._norms[site]
                    norms = norms_of(rows)[order]
                    order = order[(norms >= least) & (norms <= largest)]
            return Window(stored, numbers, order)

        return finish

    def _make_plan(self, epoch: int) -> Plan:
        order = random_order(len(self._parts.sizes), self._seed, CHUNKS, epoch)
        sizes = self._parts.sizes[order].tolist()
        dealt = [np.array(places, np.int64) for places in deal(sizes, self._readers)]
        parts = [order[places] for places in dealt]
        return Plan(parts, [windows(self._parts.sizes[each], self._window) for each in parts])

    def _wanted(self, part: int) -> Numbers:
        """Return the numbers of the wanted vectors of a part."""
        start, stop = int(self._parts.starts[part]), int(self._parts.stops[part])
        if self._only is None:
            return np.arange(start, stop)
        return self._only[slice(*np.searchsorted(self._only, [start, stop]))]

    def _read(self, site: Site, part: int, out: NDArray[Any]) -> None:
        parts = self._parts
        file = self._shards.layer_file(site, int(parts.shards[part]))
        first, last = int(parts.firsts[part]), int(parts.lasts[part])
        start, stop = int(parts.starts[part]), int(parts.stops[part])
        if len(out) == stop - start:
            file.read(first, last, out)
        else:
            rows = np.empty((stop - start, out.shape[1]), out.dtype)
            file.read(first, last, rows)
            out[...] = rows[self._wanted(part) - start]


def part_bytes(shards: Shards, window: int) -> int:
    """Return the size of the parts of a window, a multiple of CHUNK_BYTES.

    The size grows with the window, up to the size of a request to a bucket, because a window must
    have vectors from many places. It depends neither on the folder nor on the sites.
    """
    run = shards.metadata.run
    stream = RecordKind(run.pooling, run.storage_dtype, run.hidden_dim)
    chunk = shards_module.CHUNK_BYTES
    return max(1, min(REQUEST_BYTES, window * stream.vector_bytes // PLACES) // chunk) * chunk


def norms_of(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return the Euclidean norms of stored vectors, [n] float32, NaN for a vector with a NaN."""
    norms = np.empty(len(stored), np.float32)
    for start in range(0, len(stored), _NORM_ROWS):
        rows = to_float32(stored[start : start + _NORM_ROWS])
        np.einsum("ij,ij->i", rows, rows, out=norms[start : start + len(rows)])
    return np.sqrt(norms)
