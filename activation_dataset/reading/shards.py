"""The shards of a dataset: how samples and vectors are numbered, and where each vector is."""

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
"""Size of the smallest parts of files that readers read, unless a record is larger."""

INDEX_BYTES = 1 << 29
"""Most memory of the indexes that a dataset keeps, or one larger index."""


class DatasetError(ValueError):
    """A folder that is not a complete dataset of a known schema version; says what to do."""


@dataclass(frozen=True)
class Chunk:
    """Records first..last - 1 of a shard, read together, and the numbers of their vectors."""

    shard: int
    first: int
    last: int
    numbers: range


@dataclass(frozen=True, eq=False)
class Places:
    """Samples and tokens that vectors belong to.

    Attributes:
        samples: [n] int64, numbers of the samples.
        positions, token_ids: [n] int64 and [n] int32, or NO_TOKEN.
        cells: [n, 4] int16, grid cells of the tokens, as in Prompt.
        turns: [n] int16, numbers of the messages that the tokens are part of, as in Prompt.
    """

    samples: NDArray[np.int64]
    positions: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    cells: NDArray[np.int16]
    turns: NDArray[np.int16]


class Shards:
    """The shards of a complete dataset, whose samples and vectors are numbered in their order."""

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
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()  # used last, last

    def __len__(self) -> int:
        """Number of samples; each has one record at every site."""
        return self.metadata.total_samples

    @property
    def num_vectors(self) -> int:
        """Number of vectors of a site: one for each sample, or each chosen token if not pooled."""
        return int(self._vector_starts[-1])

    def check_unchanged(self, files: Mapping[str, Stamp] | None = None) -> None:
        """Raise DatasetError if another dataset was written to the folder since it was opened.

        Args:
            files: paths and stamps of layer files that must not have changed either.
        """
        found = self.stamps(files or {})
        changed = next((path for path, stamp in found.items() if stamp != (files or {})[path]), "")
        if self._replaced():
            changed = self.path
        if changed:
            raise DatasetError(
                f"{changed} was changed while it was open: vectors read since then can be of "
                "another run. Wait for that run to finish, and open the dataset again"
            )

    def _replaced(self) -> bool:
        """Return True if metadata.json is another one now."""
        (stamp,) = self.folder.stamps([METADATA_FILE])
        if stamp == self._stamp:
            return False
        try:
            found, self._stamp = _read_metadata(self.folder, self.path)
        except DatasetError:
            return True
        return found.to_json() != self.metadata.to_json()

    def stamps(self, files: Iterable[str]) -> dict[str, Stamp]:
        """Return what changes if files are written again, by path. Raises OSError."""
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

        Those used last stay in memory, INDEX_BYTES of them.
        """
        with self._lock:
            if shard in self._indexes:
                self._indexes.move_to_end(shard)
                return self._indexes[shard]
        index = open_index(self.folder, self.metadata, shard)
        entry = self.metadata.shards[shard]
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
        """Return the shard of a sample, and the sample's number in the shard. Raises IndexError."""
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

        The larger size counts. It is that of the residual stream, so that chunks are the same for
        every site.
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
        """Return uninitialized memory for vectors of sites of one width.

        It is [sites, count, row elements], as in `storage_dtype`.
        """
        kind = self.metadata.run.record_kind(sites[0])
        return np.empty((len(sites), count, kind.row_elements), numpy_dtype(kind.storage_dtype))

    def read_chunks(
        self, chunks: Iterable[Chunk], sites: Sequence[Site]
    ) -> Iterator[tuple[Chunk, NDArray[Any]]]:
        """Yield chunks in order, with their stored vectors [sites, n, row elements].

        The sites are of one width. As many chunks as the folder reads concurrently are in memory.
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
        """Return the samples and tokens of vectors, given their numbers [n]. Raises IndexError."""
        given = np.asarray(numbers)
        if given.size and given.dtype.kind not in "iu":
            raise IndexError(f"numbers of vectors are {given.dtype}, expected integers")
        numbers = given.astype(np.int64)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self.num_vectors:
            raise IndexError(
                f"vectors {numbers.min()} to {numbers.max()} are not all in "
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
    """Raise CorruptRecordError if a file has another number of records than metadata.json says."""
    if found != expected:
        raise CorruptRecordError(
            path, found, offset, f"metadata.json says {expected} records, the file has {found}"
        )


def _read_metadata(folder: Folder, path: str) -> tuple[Metadata, Stamp]:
    try:
        (stamp,) = folder.stamps([METADATA_FILE])  # first: the content could change meanwhile
        text = folder.read(METADATA_FILE)
    except FileNotFoundError:
        if folder.local and not os.path.isdir(path):
            raise DatasetError(f"there is no folder {path}") from None
        raise DatasetError(
            f"{path} has no {METADATA_FILE}: it is not a dataset, or the run that writes it has "
            "not finished. Run the same command again to finish it"
        ) from None
    except NotADirectoryError:
        raise DatasetError(f"{path} is a file: give the folder of the dataset") from None
    except OSError as error:
        raise DatasetError(f"{path}/{METADATA_FILE} cannot be read: {error}") from None
    try:
        return Metadata.from_json(text), stamp
    except FieldError as error:
        raise DatasetError(f"{path}/{METADATA_FILE}: {error}") from None
