"""The shards of a dataset: how samples and vectors are numbered, and where each vector is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.fields import FieldError
from activation_dataset.folder import Folder, open_folder
from activation_dataset.format import METADATA_FILE
from activation_dataset.index import ShardIndex, open_index
from activation_dataset.metadata import Metadata
from activation_dataset.prompts import CELL_FIELDS, NO_CELL, NO_TURN
from activation_dataset.reading.layer_file import LayerFile
from activation_dataset.sites import Site
from activation_dataset.storage_dtype import numpy_dtype
from activation_dataset.tfrecord import CorruptRecordError

NO_TOKEN = -1
"""Position and token id of a vector that is the mean over a prompt."""

CHUNK_BYTES = 1 << 18
"""Readers read this many bytes at a time, or one larger record."""


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
        self._indexes: dict[int, ShardIndex] = {}

    def __len__(self) -> int:
        """Number of samples; each has one record at every site."""
        return self.metadata.total_samples

    @property
    def num_vectors(self) -> int:
        """Number of vectors of a site: one for each sample, or each chosen token if not pooled."""
        return int(self._vector_starts[-1])

    def check_unchanged(self) -> None:
        """Raise DatasetError if another dataset was written to the folder since it was opened."""
        try:
            if self._stamp is not None and self._stamp == self.folder.stamp(METADATA_FILE):
                return
            found, self._stamp = _read_metadata(self.folder, self.path)
        except (DatasetError, OSError):
            found = None
        if found is None or found.to_json() != self.metadata.to_json():
            raise DatasetError(
                f"{self.path} was changed while it was open: vectors read since then can be of "
                "another run. Wait for that run to finish, and open the dataset again"
            )

    def index(self, shard: int) -> ShardIndex:
        """Return the index of a shard, the same for every site."""
        if shard not in self._indexes:
            entry = self.metadata.shards[shard]
            index = open_index(self.folder, self.metadata, shard)
            check_count(entry.prompts.path, len(index), entry.samples, 0)
            self._indexes[shard] = index
        return self._indexes[shard]

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

    def chunks(self, shard: int) -> list[Chunk]:
        """Return all records of a shard, in order, in chunks of CHUNK_BYTES or of one record.

        The size is that of the residual stream, so that chunks are the same for every site.
        """
        index = self.index(shard)
        starts = index.record_starts[0]
        ends = [0, *index.vector_ends.tolist()]
        start = self.shard_numbers(shard).start
        chunks = []
        first = 0
        while first < len(index):
            limit = starts[first] + CHUNK_BYTES
            fitting = int(np.searchsorted(starts, limit, side="right")) - 1
            last = max(fitting, first + 1)
            chunks.append(Chunk(shard, first, last, range(start + ends[first], start + ends[last])))
            first = last
        return chunks

    def layer_file(self, site: Site, shard: int) -> LayerFile:
        """Return the layer file of a site and shard."""
        path = self.metadata.shards[shard].files[site].path
        kind = self.metadata.run.record_kind(site)
        return LayerFile(self.folder, path, self.index(shard), kind)

    def stored_vectors(self, sites: Sequence[Site], count: int) -> NDArray[Any]:
        """Return uninitialized memory for vectors of sites of one width.

        It is [sites, count, row elements], as in `storage_dtype`.
        """
        kind = self.metadata.run.record_kind(sites[0])
        return np.empty((len(sites), count, kind.row_elements), numpy_dtype(kind.storage_dtype))

    def read_chunks(
        self, chunks: Sequence[Chunk], sites: Sequence[Site]
    ) -> Iterator[tuple[Chunk, NDArray[Any]]]:
        """Yield chunks in order, with their stored vectors [sites, n, row elements].

        The sites are of one width.
        """

        def read(chunk: Chunk) -> tuple[Chunk, NDArray[Any]]:
            stored = self.stored_vectors(sites, len(chunk.numbers))
            for site, rows in zip(sites, stored, strict=True):
                self.layer_file(site, chunk.shard).read(chunk.first, chunk.last, rows)
            return chunk, stored

        threads = self.folder.parallel_reads
        if threads == 1:
            yield from map(read, chunks)
            return
        with ThreadPoolExecutor(threads, "read") as pool:
            for first in range(0, len(chunks), 2 * threads):
                yield from pool.map(read, chunks[first : first + 2 * threads])

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


def _read_metadata(folder: Folder, path: str) -> tuple[Metadata, tuple[int, ...] | None]:
    try:
        stamp = folder.stamp(METADATA_FILE)  # before the content, which could change meanwhile
        with folder.open(METADATA_FILE) as stream:
            text = stream.read()
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
