"""Reading shards in order, in blocks of vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.elements import Wanted, put
from activation_dataset.format import numpy_dtype
from activation_dataset.reading.in_order import map_in_order
from activation_dataset.reading.layer_file import Run, runs_of
from activation_dataset.reading.vectors import Vectors
from activation_dataset.reuse import ReusedArrays, Scratch

if TYPE_CHECKING:
    from activation_dataset.reading.reader import ActivationDataset

# A block of widened vectors stays in a core's cache.
_BLOCK_BYTES = 1 << 20


class BlockReader:
    """Reads all vectors of shards, in order.

    Args:
        dataset: where they are.
        wanted: of each vector.
    """

    def __init__(self, dataset: ActivationDataset, wanted: Wanted) -> None:
        self._dataset, self._wanted = dataset, wanted
        self._stored = numpy_dtype(dataset.kind.storage_dtype)
        self._arrays = ReusedArrays()
        self._scratch = Scratch()

    def blocks(self, shards: Iterable[int]) -> Iterator[Vectors]:
        """The vectors of the shards in blocks of at most about 1 MiB, or of one record.

        Raises:
            CorruptRecordError: a CRC does not match, or a file ends too early. What was yielded
                before is sound.
        """
        for shard in shards:
            for numbers, stored in self._runs(shard):
                yield from self._blocks(numbers, stored)

    def _runs(self, shard: int) -> Iterator[tuple[range, NDArray[Any]]]:
        """The numbers of the vectors of each run, and [layers, n, hidden] as they are stored."""
        layers, hidden = self._wanted.layers, self._dataset.kind.hidden

        def read(run: Run) -> tuple[range, NDArray[Any]]:
            numbers = self._dataset.numbers(shard, run)
            stored = self._arrays.take((len(layers), len(numbers), hidden), self._stored)
            for file, part in zip(files, stored, strict=True):
                file.read(run, part)
            return numbers, stored

        with ExitStack() as stack:
            files = [
                stack.enter_context(self._dataset.layer_file(layer, shard, self._scratch))
                for layer in layers
            ]
            runs = runs_of(self._dataset.index(shard))
            yield from map_in_order(read, runs, self._dataset.parallel_reads)

    def _blocks(self, numbers: range, stored: NDArray[Any]) -> Iterator[Vectors]:
        wanted = self._wanted
        if wanted.single and wanted.dtype.itemsize == stored.itemsize and wanted.factors == (1.0,):
            values = stored[0].view(wanted.dtype)
            yield Vectors(values, np.arange(numbers.start, numbers.stop), self._dataset)
            return
        row_bytes = len(stored) * stored.shape[2] * wanted.dtype.itemsize
        rows = max(1, _BLOCK_BYTES // row_bytes)
        for start in range(0, len(numbers), rows):
            part = numbers[start : start + rows]
            values = self._arrays.take(wanted.shape(len(part), stored.shape[2]), wanted.dtype)
            for place, factor in enumerate(wanted.factors):
                rows_of_layer = stored[place, start : start + rows]
                put(rows_of_layer, wanted.layer_of(values, place), factor)
            yield Vectors(values, np.arange(part.start, part.stop), self._dataset)
