"""Windows: vectors from all over a dataset that are in memory together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.elements import put, scatter
from activation_dataset.format import numpy_dtype
from activation_dataset.reading.in_order import map_in_order
from activation_dataset.reading.layer_file import Run, runs_of
from activation_dataset.reading.shuffle import ROWS, RUNS, deal, random_order, windows
from activation_dataset.reuse import ReusedArrays, Scratch
from activation_dataset.sites import Site

if TYPE_CHECKING:
    from activation_dataset.reading.reader import ActivationDataset

Norms = tuple[float, float]
"""Least and largest norm of a vector that is kept."""

_NORM_ROWS = 128


@dataclass(frozen=True, eq=False)
class Window:
    """Vectors in memory, in a random order.

    Attributes:
        stored: [layers, n, hidden], as they are stored.
        numbers: [n] int64, their numbers.
        kept: [k] int64, which of the n the norms let pass, ascending.
    """

    stored: NDArray[Any]
    numbers: NDArray[np.int64]
    kept: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _ShardRun:
    """A run of a shard, and which of its vectors are wanted.

    Attributes:
        shard, run: which records.
        start: number of its first vector.
        count: its vectors.
        chosen: [c] int64, places in the run of the wanted ones, ascending; None for all.
    """

    shard: int
    run: Run
    start: int
    count: int
    chosen: NDArray[np.int64] | None

    @property
    def size(self) -> int:
        """Vectors wanted."""
        return self.count if self.chosen is None else len(self.chosen)


class WindowReader:
    """Plans the windows of each epoch and reads them.

    Args:
        dataset: where the vectors are.
        layers: to be read.
        only: [n] int64, ascending numbers of the vectors wanted; None for all.
        norms: layer to bounds.
        window: vectors of a window, at least.
        seed: of the order.
        readers: how many share an epoch.
    """

    def __init__(
        self,
        dataset: ActivationDataset,
        layers: Sequence[Site],
        only: NDArray[np.int64] | None,
        norms: Mapping[Site, Norms],
        window: int,
        seed: int,
        readers: int,
    ) -> None:
        self._dataset, self._layers, self._norms = dataset, tuple(layers), dict(norms)
        self._window, self._seed, self._readers = window, seed, readers
        self._runs = [
            run
            for shard in range(len(dataset.metadata.shards))
            for run in _shard_runs(dataset, shard, only)
            if run.size
        ]
        self._capacity = min(
            sum(run.size for run in self._runs),
            window + max((run.size for run in self._runs), default=0),
        )
        self._pools = ReusedArrays(kept=2)
        self._scratch = Scratch()
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    def sizes(self, epoch: int) -> list[int]:
        """Vectors that each reader reads in an epoch, before any is left out for its norm."""
        return [sum(self._runs[run].size for run in part) for part in self._plan(epoch)]

    def windows(self, epoch: int, reader: int) -> list[list[int]]:
        """The windows of one reader's part of an epoch, each a list of runs for `load`."""
        part = self._plan(epoch)[reader]
        return [part[cut] for cut in windows([self._runs[run].size for run in part], self._window)]

    def load(self, epoch: int, reader: int, number: int) -> Window:
        """Reads a window, given by its number in `windows`, into memory.

        Vectors are put in their places while they are in a core's cache.

        Raises:
            CorruptRecordError: a CRC does not match, or a file ends too early.
        """
        runs = [self._runs[run] for run in self.windows(epoch, reader)[number]]
        ends = np.cumsum([run.size for run in runs]).tolist()
        count = ends[-1]
        places = random_order(count, self._seed, ROWS, epoch, number)
        kind = self._dataset.kind
        pool = self._pools.take(
            (len(self._layers), self._capacity, kind.hidden), numpy_dtype(kind.storage_dtype)
        )[:, :count]
        numbers = np.empty(count, np.int64)

        def read(item: int) -> None:
            run = runs[item]
            part = places[ends[item] - run.size : ends[item]]
            numbers[part] = run.start + (np.arange(run.count) if run.chosen is None else run.chosen)
            for layer, stored in zip(self._layers, pool, strict=True):
                self._read(run, layer, stored, part)

        for _ in map_in_order(read, range(len(runs)), self._dataset.parallel_reads):
            pass
        return Window(pool, numbers, self._kept(pool))

    def _make_plan(self, epoch: int) -> list[list[int]]:
        """For each reader its runs, in the order in which it reads them."""
        order = random_order(len(self._runs), self._seed, RUNS, epoch).tolist()
        dealt = deal([self._runs[run].size for run in order], self._readers)
        return [[order[place] for place in part] for part in dealt]

    def _read(
        self, run: _ShardRun, layer: Site, out: NDArray[Any], places: NDArray[np.int64]
    ) -> None:
        """Reads the wanted vectors of a run into these places, [size], of [n, hidden]."""
        with self._dataset.layer_file(layer, run.shard, self._scratch) as file:
            if run.chosen is None:
                file.read(run.run, out, places)
                return
            start = position = 0
            for piece in file.pieces(run.run):
                first, last = np.searchsorted(run.chosen, [start, start + len(piece)]).tolist()
                wanted = piece[run.chosen[first:last] - start]
                scatter(wanted, out, places[position : position + len(wanted)])
                start += len(piece)
                position += len(wanted)

    def _kept(self, pool: NDArray[Any]) -> NDArray[np.int64]:
        kept = np.ones(pool.shape[1], np.bool_)
        for layer, stored in zip(self._layers, pool, strict=True):
            if layer in self._norms:
                least, largest = self._norms[layer]
                norms = norms_of(stored)
                kept &= (norms >= least) & (norms <= largest)
        return np.flatnonzero(kept)


def norms_of(stored: NDArray[Any]) -> NDArray[np.float32]:
    """[n] float32: Euclidean norms of stored vectors, [n, hidden]. A NaN has a NaN."""
    norms = np.empty(len(stored), np.float32)
    values = np.empty((_NORM_ROWS, stored.shape[1]), np.float32)
    for start in range(0, len(stored), _NORM_ROWS):
        part = stored[start : start + _NORM_ROWS]
        rows = values[: len(part)]
        put(part, rows)
        np.einsum("ij,ij->i", rows, rows, out=norms[start : start + len(part)])
    return np.sqrt(norms)


def _shard_runs(
    dataset: ActivationDataset, shard: int, only: NDArray[np.int64] | None
) -> list[_ShardRun]:
    runs = []
    for run in runs_of(dataset.index(shard)):
        numbers = dataset.numbers(shard, run)
        chosen = None
        if only is not None:
            first, last = np.searchsorted(only, [numbers.start, numbers.stop]).tolist()
            if last - first < len(numbers):
                chosen = only[first:last] - numbers.start
        runs.append(_ShardRun(shard, run, numbers.start, len(numbers), chosen))
    return runs
