"""Shards of a dataset, and the numbers and places of their samples and vectors."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.damage import DatasetError, with_advice
from activation_dataset.fields import FieldError
from activation_dataset.folder import Folder, Stamp, open_folder
from activation_dataset.format import METADATA_FILE
from activation_dataset.index import ShardIndex, open_index
from activation_dataset.layout import Layout, runs
from activation_dataset.metadata import Metadata
from activation_dataset.prompts import CELL_FIELDS, NO_CELL, NO_TURN
from activation_dataset.reading.layer_file import LayerFile
from activation_dataset.sites import Site
from activation_dataset.storage_dtype import numpy_dtype
from activation_dataset.tfrecord import CorruptRecordError

NO_TOKEN = -1
"""Position and token id of a vector that is the mean over a prompt."""

CHUNK_BYTES = 1 << 18
"""Bytes of the smallest part of a file that a reader requests, unless a record is larger."""

INDEX_BYTES = 1 << 29
"""Limit in bytes on the indexes that a dataset keeps in memory; one index may exceed it."""


@dataclass(frozen=True)
class Chunk:
    """Records first..last - 1 of a shard, which are read together.

    Attributes:
        shard: number of the shard.
        first: first record.
        last: record after the last one.
        numbers: numbers of the vectors of the records.
    """

    shard: int
    first: int
    last: int
    numbers: range


@dataclass(frozen=True, eq=False)
class Places:
    """Samples and tokens of vectors.

    Attributes:
        samples: [n] int64, numbers of the samples.
        positions: [n] int64, positions of the tokens in their samples, or NO_TOKEN.
        token_ids: [n] int32, ids of the tokens, or NO_TOKEN.
        cells: [n, 4] int16, grid cells of the tokens, as in `Prompt`.
        turns: [n] int16, numbers of the tokens' chat messages, as in `Prompt`.
    """

    samples: NDArray[np.int64]
    positions: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    cells: NDArray[np.int16]
    turns: NDArray[np.int16]


class Shards:
    """Shards of a complete dataset. Samples and vectors are numbered in the order of the shards."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.folder = open_folder(path)
        self.metadata, self._stamp = _read_metadata(self.folder, self.path)
        samples = [shard.samples for shard in self.metadata.shards]
        vectors = [shard.vectors for shard in self.metadata.shards]
        self._sample_starts = np.cumsum([0, *samples])
        self._vector_starts = np.cumsum([0, *vectors])
        self._lock = threading.Lock()
        self._layouts: dict[int, Layout] = {}
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()  # last used at the end

    def __len__(self) -> int:
        """Return the number of samples. Each sample has one record at every site."""
        return self.metadata.total_samples

    @property
    def num_vectors(self) -> int:
        """Number of vectors of a site: one per sample, or one per chosen token without pooling."""
        return int(self._vector_starts[-1])

    def check_unchanged(self, files: Mapping[str, Stamp] | None = None) -> None:
        """Check that the dataset in the folder is the dataset that was opened.

        Args:
            files: stamps, by path, of layer files that must not have changed.

        Raises:
            DatasetError: if another dataset was written to the folder, or a file changed.
        """
        found = self.stamps(files or {})
        changed = next((path for path, stamp in found.items() if stamp != (files or {})[path]), "")
        if self._replaced():
            changed = self.path
        if changed:
            raise DatasetError(
                f"{changed} was changed while it was open: vectors read since then can belong to "
                "another run. Wait for that run to finish, and open the dataset again"
            )

    def _replaced(self) -> bool:
        """Return True if metadata.json has other content now."""
        (stamp,) = self.folder.stamps([METADATA_FILE])
        if stamp == self._stamp:
            return False
        try:
            found, self._stamp = _read_metadata(self.folder, self.path)
        except DatasetError:
            return True
        return found.to_json() != self.metadata.to_json()

    def stamps(self, files: Iterable[str]) -> dict[str, Stamp]:
        """Return the stamps of files by path. Rewriting a file changes its stamp.

        Raises:
            OSError: if the folder does not answer.
        """
        paths = list(files)
        return dict(zip(paths, self.folder.stamps(paths), strict=True))

    def layout(self, shard: int) -> Layout:
        """Return the layout of a shard, which stays in memory."""
        return self._layouts[shard] if shard in self._layouts else self.index(shard).layout

    def layouts(self) -> list[Layout]:
        """Return the layouts of all shards, read concurrently from a bucket."""
        count, threads = len(self.metadata.shards), self.folder.parallel_reads
        if threads == 1:
            return [self.layout(shard) for shard in range(count)]
        with ThreadPoolExecutor(threads, "index") as pool:
            return list(pool.map(self.layout, range(count)))

    def index(self, shard: int) -> ShardIndex:
        """Return the index of a shard, the same for every site.

        The most recently used indexes, up to INDEX_BYTES, stay in memory.
        """
        with self._lock:
            if shard in self._indexes:
                self._indexes.move_to_end(shard)
                return self._indexes[shard]
        index = open_index(self.folder, self.metadata, shard)
        entry = self.metadata.shards[shard]
        with with_advice(self.folder, entry.prompts.path):
            check_count(entry.prompts.path, len(index), entry.samples, 0)
        with self._lock:
            self._layouts[shard] = index.layout
            self._indexes[shard] = index
            size = sum(each.nbytes for each in self._indexes.values())
            while size > INDEX_BYTES and len(self._indexes) > 1:
                _, oldest = self._indexes.popitem(last=False)
                size -= oldest.nbytes
        return index

    def shard_of(self, sample: int) -> tuple[int, int]:
        """Return the shard of a sample, and the sample's number in the shard.

        Raises:
            IndexError: if the dataset does not have the sample.
        """
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} is not in 0..{len(self) - 1}")
        shard = int(np.searchsorted(self._sample_starts, sample, side="right")) - 1
        return shard, sample - int(self._sample_starts[shard])

    def sample_id(self, sample: int) -> str:
        """Return the id of a sample, given its number."""
        shard, number = self.shard_of(sample)
        return self.index(shard).sample_ids[number]

    def task_id(self, sample: int) -> str:
        """Return the id of the task of a sample, given the sample's number."""
        shard, number = self.shard_of(sample)
        return self.index(shard).task_ids[number]

    def shard_numbers(self, shard: int) -> range:
        """Return the numbers of the vectors of a shard."""
        return range(int(self._vector_starts[shard]), int(self._vector_starts[shard + 1]))

    def chunks(self, shard: int, read_bytes: int = 1) -> list[Chunk]:
        """Return all records of a shard, in order, in chunks of CHUNK_BYTES or `read_bytes`.

        The larger size applies. It is measured on the residual stream, which makes the chunks the
        same for every site.
        """
        cut = runs(self.layout(shard), CHUNK_BYTES, max(CHUNK_BYTES, read_bytes), None)
        start = self.shard_numbers(shard).start
        places = (cut.firsts, cut.lasts, start + cut.starts, start + cut.stops)
        return [
            Chunk(shard, first, last, range(begin, end))
            for first, last, begin, end in zip(*(each.tolist() for each in places), strict=True)
        ]

    def layer_file(self, site: Site, shard: int) -> LayerFile:
        """Return the layer file of a site and shard."""
        path = self.metadata.shards[shard].files[site].path
        kind = self.metadata.run.record_kind(site)
        return LayerFile(self.folder, path, self.layout(shard), kind)

    def layer_paths(self, sites: Sequence[Site], shards: Iterable[int]) -> list[str]:
        """Return the paths of the layer files of sites and shards."""
        entries = [self.metadata.shards[shard].files for shard in shards]
        return [files[site].path for site in sites for files in entries]

    def stored_vectors(self, sites: Sequence[Site], count: int) -> NDArray[Any]:
        """Return uninitialized memory for `count` vectors of each site; all sites have one width.

        Returns:
            [sites, count, row elements], as in `storage_dtype`.
        """
        kind = self.metadata.run.record_kind(sites[0])
        return np.empty((len(sites), count, kind.row_elements), numpy_dtype(kind.storage_dtype))

    def read_chunks(
        self, chunks: Iterable[Chunk], sites: Sequence[Site]
    ) -> Iterator[tuple[Chunk, NDArray[Any]]]:
        """Yield chunks in order, with their stored vectors [sites, n, row elements].

        All sites have one width. Memory holds one chunk for each concurrent read of the folder.
        """

        def read(chunk: Chunk) -> NDArray[Any]:
            stored = self.stored_vectors(sites, len(chunk.numbers))
            for site, rows in zip(sites, stored, strict=True):
                self.layer_file(site, chunk.shard).read(chunk.first, chunk.last, rows)
            return stored

        threads = self.folder.parallel_reads
        if threads == 1:
            yield from ((chunk, read(chunk)) for chunk in chunks)
            return
        coming: deque[tuple[Chunk, Future[NDArray[Any]]]] = deque()
        pool = ThreadPoolExecutor(threads, "read")
        try:
            for chunk in chunks:
                coming.append((chunk, pool.submit(read, chunk)))
                if len(coming) == threads:
                    first, stored = coming.popleft()
                    yield first, stored.result()
            while coming:
                first, stored = coming.popleft()
                yield first, stored.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def locate(self, numbers: NDArray[np.int64] | Sequence[int]) -> Places:
        """Return the samples and tokens of vectors, given their numbers [n].

        Raises:
            IndexError: if the dataset does not have a vector, or a number is not an integer.
        """
        given = np.asarray(numbers)
        if given.size and given.dtype.kind not in "iu":
            raise IndexError(f"numbers of vectors have dtype {given.dtype}, expected integers")
        numbers = given.astype(np.int64)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self.num_vectors:
            raise IndexError(
                f"vectors have numbers {numbers.min()} to {numbers.max()}, expected "
                f"0..{self.num_vectors - 1}"
            )
        places = Places(
            np.empty(len(numbers), np.int64),
            np.full(len(numbers), NO_TOKEN, np.int64),
            np.full(len(numbers), NO_TOKEN, np.int32),
            np.full((len(numbers), len(CELL_FIELDS)), NO_CELL, np.int16),
            np.full(len(numbers), NO_TURN, np.int16),
        )
        shards = np.searchsorted(self._vector_starts, numbers, side="right") - 1
        for shard in np.unique(shards).tolist():
            index, rows = self.index(shard), np.flatnonzero(shards == shard)
            vectors = numbers[rows] - self._vector_starts[shard]
            samples = np.searchsorted(index.vector_ends, vectors, side="right")
            places.samples[rows] = samples + self._sample_starts[shard]
            if index.pooling != "mean":
                tokens = index.vector_tokens[vectors]
                places.positions[rows] = index.vector_positions[vectors]
                places.token_ids[rows] = index.token_ids[tokens]
                places.cells[rows] = index.cells[tokens]
                if len(index.turns):
                    places.turns[rows] = index.turns[tokens]
        return places


def check_count(path: str, found: int, expected: int, offset: int) -> None:
    """Check the number of records of a file.

    Raises:
        CorruptRecordError: if the number differs from metadata.json.
    """
    if found != expected:
        raise CorruptRecordError(
            path, found, offset, f"metadata.json says {expected} records, the file has {found}"
        )


def _read_metadata(folder: Folder, path: str) -> tuple[Metadata, Stamp]:
    try:
        # Take the stamp first, because the content could change in between.
        (stamp,) = folder.stamps([METADATA_FILE])
        text = folder.read(METADATA_FILE)
    except FileNotFoundError:
        if folder.local and not os.path.isdir(path):
            raise DatasetError(f"there is no folder {path}") from None
        raise DatasetError(
            f"{path} has no {METADATA_FILE}: the folder is not a dataset, or its run has not "
            "finished. Run the same command again to finish it"
        ) from None
    except NotADirectoryError:
        raise DatasetError(f"{path} is a file, expected the folder of a dataset") from None
    except OSError as error:
        raise DatasetError(f"{path}/{METADATA_FILE} cannot be read: {error}") from None
    try:
        return Metadata.from_json(text), stamp
    except FieldError as error:
        raise DatasetError(f"{path}/{METADATA_FILE}: {error}") from None
