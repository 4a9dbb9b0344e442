"""Reading a dataset: by layer, one record after the other or any one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset import native
from activation_dataset.elements import Dtype, Normalise, Wanted
from activation_dataset.example import ExampleError, decode_example
from activation_dataset.fields import FieldError
from activation_dataset.folder import Folder, open_folder
from activation_dataset.format import METADATA_FILE, to_float32
from activation_dataset.index import ShardIndex
from activation_dataset.index_file import open_index
from activation_dataset.metadata import Metadata
from activation_dataset.reading.batches import Batches
from activation_dataset.reading.blocks import BlockReader
from activation_dataset.reading.layer_file import RUN_BYTES, LayerFileReader, Run
from activation_dataset.reading.provenance import Origin, TokenQuery, trace, where
from activation_dataset.reading.vectors import Places, Vectors
from activation_dataset.record import RecordKind
from activation_dataset.reuse import Scratch
from activation_dataset.sites import Site
from activation_dataset.tfrecord import (
    FOOTER_BYTES,
    HEADER_BYTES,
    CorruptRecordError,
    read_records,
    record_data,
)


class DatasetError(ValueError):
    """A folder that is not a whole dataset of a version this reader knows; says what to do."""


@dataclass(frozen=True, eq=False)
class ActivationRecord:
    """What one layer holds of one sample.

    Attributes:
        sample_id: unique in the dataset.
        task_id: id of the task, as its file gave it.
        stored: [hidden], or [num_tokens, hidden] with pooling "none": the elements as stored,
            float32 or uint16 with bfloat16's bits; a read-only view that need not be aligned.
        token_ids: [n] int32: the prompt's tokens; with pooling "last" the one token.
        num_tokens: tokens of the prompt.
    """

    sample_id: str
    task_id: str
    stored: NDArray[Any]
    token_ids: NDArray[np.int32]
    num_tokens: int

    @property
    def activation(self) -> NDArray[np.float32]:
        """The elements as float32, aligned, in the shape of `stored`."""
        return np.require(to_float32(self.stored), requirements="A")


class ActivationDataset:
    """A complete dataset, opened for reading.

    Only metadata.json is read at first. Samples are numbered in the order of the shards, the same
    in every layer.

        dataset = ActivationDataset("activations")
        dataset.layers                         # (10, 11, ..., 23)
        dataset[10][0].activation              # [hidden] float32, by random access
        dataset["blocks.10.hook_mlp_out"]      # another hook point, if it was captured
        for record in dataset.records(10): ... # in order, every CRC checked

    Args:
        path: local folder, or a URL that fsspec can open.

    Raises:
        DatasetError: the folder holds no complete dataset, or one of another schema version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.folder = open_folder(path)
        self.metadata = _read_metadata(self.folder, self.path)
        run, batches = self.metadata.run, self.metadata.shards
        self.kind = RecordKind(run.pooling, run.storage_dtype, run.hidden_dim)
        samples = [batch.samples for batch in batches]
        vectors = [batch.tokens for batch in batches] if run.pooling == "none" else samples
        self._sample_starts = np.cumsum([0, *samples])
        self._vector_starts = np.cumsum([0, *vectors])
        self._indexes: dict[int, ShardIndex] = {}

    def __len__(self) -> int:
        """Samples; each has one record in every layer."""
        return self.metadata.total_samples

    def __getitem__(self, layer: Site) -> LayerRecords:
        """The records of a layer, as a sequence.

        Args:
            layer: a layer's number, for the residual stream after it, or the name of another site.
        """
        return LayerRecords(self, self.metadata.run.site(layer))

    def __repr__(self) -> str:
        return f"ActivationDataset({self.path!r}: {len(self)} samples, layers {self.layers})"

    def __reduce__(self) -> tuple[type[ActivationDataset], tuple[str]]:
        """In another process it is opened anew."""
        return ActivationDataset, (self.path,)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers, ascending."""
        return self.metadata.run.layers_extracted

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where vectors were captured: a layer's number is the residual stream after it, any other
        site has the name that TransformerLens gives it, such as "blocks.10.hook_mlp_out"."""
        return self.metadata.run.sites

    @property
    def num_vectors(self) -> int:
        """Vectors of a layer: one for each sample if pooled, else one for each token."""
        return int(self._vector_starts[-1])

    def batches(self, layers: Site | Sequence[Site], batch_size: int, **options: Any) -> Batches:
        """Shuffled batches for training; `options` are those of `Batches`, where all is said."""
        return Batches(self, layers, batch_size, **options)

    def blocks(
        self,
        layers: Site | Sequence[Site],
        *,
        dtype: Dtype = "float32",
        normalise: Normalise | None = None,
        shard: int | None = None,
    ) -> Iterator[Vectors]:
        """All vectors in order, many at a time: the fastest way through a layer.

        Args:
            layers: a layer's number, or the name of another site, or several of them: then the
                values are [n, layers, hidden], the same tokens in every layer.
            dtype: of the values.
            normalise: scaling of the values.
            shard: number of the one to read; None for all.

        Raises:
            KeyError, ValueError: an argument that cannot be met; says which and why.
            CorruptRecordError: a CRC does not match, or a file ends too early. What was given out
                before is sound.
        """
        wanted = Wanted.of(self.metadata, layers, dtype, normalise)
        yield from BlockReader(self, wanted).blocks(self._shards(shard))

    def records(self, layer: Site, shard: int | None = None) -> Iterator[ActivationRecord]:
        """The records of a layer, or of one of its shards, in order.

        Raises:
            CorruptRecordError: a CRC does not match, a record is malformed, or a file holds more or
                fewer records than the metadata says.
        """
        site = self.metadata.run.site(layer)
        for each in self._shards(shard):
            yield from self._shard_records(site, each)

    def sample(self, layer: Site, index: int) -> ActivationRecord:
        """One record. The first access to a shard reads its index.

        Args:
            layer: a layer's number, or the name of another site.
            index: number of the sample, 0..len - 1.

        Raises:
            CorruptRecordError: as `records`, for this record.
        """
        site = self.metadata.run.site(layer)
        shard, number = self._place(index)
        path = self.metadata.shards[shard].files[site].path
        start, end = self.index(shard).record_starts[number : number + 2].tolist()
        block = np.empty(end - start, np.uint8)
        with closing(self.folder.source(path)) as source:
            whole = source.read(start, [block])
        if not whole:
            raise CorruptRecordError(
                path, number, start, "the file ends inside this record or before it"
            )
        return self._decode(record_data(block, path, number, start), path, number, start)

    def index(self, shard: int) -> ShardIndex:
        """Where the shard's records lie, and its prompts; the same in every layer.

        Read from the index file, or else made from the shard's prompts and, in a local folder that
        can be written to, kept there.

        Raises:
            CorruptRecordError: the prompts are not what was written.
        """
        if shard not in self._indexes:
            batch = self.metadata.shards[shard]
            num_shards = len(self.metadata.shards)
            index = open_index(self.folder, batch.prompts, shard, num_shards, self.kind)
            _check_count(batch.prompts.path, len(index), batch.samples, 0)
            self._indexes[shard] = index
        return self._indexes[shard]

    def sample_id(self, index: int) -> str:
        """The id of a sample, by its number, 0..len - 1."""
        shard, number = self._place(index)
        return self.index(shard).sample_id(number)

    def task_id(self, index: int) -> str:
        """The id of a sample's task, by the sample's number, 0..len - 1."""
        shard, number = self._place(index)
        return self.index(shard).task_id(number)

    def where(self, **query: Any) -> NDArray[np.int64]:
        """The numbers of the vectors of some tokens, [n] int64, ascending.

            dataset.where(task="007bbfb7", role="output", example=0, row=2, col=1)

        Args:
            query: what is wanted of the tokens, as `TokenQuery` has it.

        Raises:
            ValueError: no token can be so.
        """
        return where(self, TokenQuery(**query))

    def trace(self, number: int) -> Origin:
        """Where a vector comes from: its task, test input, token, and the cell that this shows.

        Args:
            number: the vector's number, 0..num_vectors - 1.
        """
        return trace(self, number)

    def locate(self, numbers: NDArray[np.int64] | Sequence[int]) -> Places:
        """Where vectors come from.

        Args:
            numbers: [n] int64, the vectors' numbers, 0..num_vectors - 1.

        Raises:
            IndexError: there is no vector of one of these numbers.
        """
        numbers = np.asarray(numbers, np.int64)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self.num_vectors:
            raise IndexError(
                f"vectors {numbers.min()} to {numbers.max()} are not all in "
                f"0..{self.num_vectors - 1}"
            )
        places = Places.empty(len(numbers))
        shards = np.searchsorted(self._vector_starts, numbers, side="right") - 1
        for shard in np.unique(shards).tolist():
            where = np.flatnonzero(shards == shard)
            places.put(where, self.index(shard), numbers[where] - self._vector_starts[shard])
            places.samples[where] += self._sample_starts[shard]
        return places

    def layer_file(
        self, layer: Site, shard: int, scratch: Scratch | None = None
    ) -> LayerFileReader:
        """A layer file, opened to be read in runs; close it by using it as a context manager."""
        path = self.metadata.shards[shard].files[layer].path
        index = self.index(shard)
        source = self.folder.source(path)
        return LayerFileReader(source, path, index, self.kind, scratch or Scratch())

    @property
    def parallel_reads(self) -> int:
        """How many runs to read at a time.

        Threads that read small records of a local file would wait for the interpreter's lock.
        """
        vectors_per_record = self.num_vectors / max(1, len(self))
        small = vectors_per_record * self.kind.vector_bytes < RUN_BYTES
        if self.folder.local and (small or native.library is None):
            return 1
        return self.folder.parallel_reads

    def shard_numbers(self, shard: int) -> range:
        """The numbers of the vectors of a shard."""
        return range(int(self._vector_starts[shard]), int(self._vector_starts[shard + 1]))

    def numbers(self, shard: int, run: Run) -> range:
        """The numbers of the vectors of a run."""
        ends = self.index(shard).vector_ends
        start = int(self._vector_starts[shard])
        first = int(ends[run.first - 1]) if run.first else 0
        return range(start + first, start + int(ends[run.last - 1]))

    def _place(self, index: int) -> tuple[int, int]:
        """The shard of a sample, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} is not in 0..{len(self) - 1}")
        shard = int(np.searchsorted(self._sample_starts, index, side="right")) - 1
        return shard, index - int(self._sample_starts[shard])

    def _shards(self, shard: int | None) -> Sequence[int]:
        """One shard, or all."""
        count = len(self.metadata.shards)
        if shard is not None and not 0 <= shard < count:
            raise IndexError(f"shard {shard} is not in 0..{count - 1}")
        return range(count) if shard is None else [shard]

    def _shard_records(self, layer: Site, shard: int) -> Iterator[ActivationRecord]:
        batch = self.metadata.shards[shard]
        path = batch.files[layer].path
        number = offset = 0
        with self.folder.open(path) as stream:
            for data in read_records(stream, path):
                if number < batch.samples:
                    yield self._decode(data, path, number, offset)
                number += 1
                offset += HEADER_BYTES + len(data) + FOOTER_BYTES
        _check_count(path, number, batch.samples, offset)

    def _decode(self, data: memoryview, path: str, number: int, offset: int) -> ActivationRecord:
        try:
            example = decode_example(data)
            stored = self.kind.activation(example)
        except ExampleError as error:
            raise CorruptRecordError(path, number, offset, str(error)) from None
        sample = example.sample
        return ActivationRecord(
            sample.sample_id, sample.task_id, stored, sample.token_ids, sample.num_tokens
        )


class LayerRecords(Sequence[ActivationRecord]):
    """The records of one layer of a dataset: by index, or in order."""

    def __init__(self, dataset: ActivationDataset, layer: Site) -> None:
        self._dataset, self.layer = dataset, layer

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        """The record at an index, which may be negative; for a slice, a list of records."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self._dataset.sample(self.layer, index + len(self) if index < 0 else index)

    def __iter__(self) -> Iterator[ActivationRecord]:
        return self._dataset.records(self.layer)


def _read_metadata(folder: Folder, path: str) -> Metadata:
    try:
        with folder.open(METADATA_FILE) as stream:
            text = stream.read()
    except FileNotFoundError:
        if folder.local and not os.path.isdir(path):
            raise DatasetError(f"there is no folder {path}") from None
        raise DatasetError(
            f"{path} has no {METADATA_FILE}: it is no dataset, or the run that writes it has not "
            "finished. Run the same command again to finish it"
        ) from None
    except NotADirectoryError:
        raise DatasetError(f"{path} is a file: give the folder that the dataset is in") from None
    except OSError as error:
        raise DatasetError(f"{path}/{METADATA_FILE} cannot be read: {error}") from None
    try:
        return Metadata.from_json(text)
    except FieldError as error:
        raise DatasetError(f"{path}/{METADATA_FILE}: {error}") from None


def _check_count(path: str, found: int, expected: int, offset: int) -> None:
    if found != expected:
        raise CorruptRecordError(
            path, found, offset, f"the metadata says {expected} records, the file has {found}"
        )
