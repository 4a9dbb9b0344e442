"""Reading a dataset: by layer, one record after the other or any one of them."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.example import ExampleError, decode_example
from activation_dataset.fields import FieldError
from activation_dataset.folder import Folder, open_folder
from activation_dataset.format import METADATA_FILE, to_float32
from activation_dataset.metadata import Metadata
from activation_dataset.record import RecordKind
from activation_dataset.tfrecord import (
    FOOTER_BYTES,
    HEADER_BYTES,
    CorruptRecordError,
    read_record_at,
    read_records,
    record_offsets,
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
        for record in dataset.records(10): ... # in order, every CRC checked

    Args:
        path: local folder, or a URL that fsspec can open.

    Raises:
        DatasetError: the folder holds no complete dataset, or one of another schema version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._folder = open_folder(path)
        self.metadata = _read_metadata(self._folder, self.path)
        run = self.metadata.run
        self._kind = RecordKind(run.pooling, run.storage_dtype, run.hidden_dim)
        self._ends = list(accumulate(batch.samples for batch in self.metadata.batches))
        self._offsets: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Samples; each has one record in every layer."""
        return self.metadata.total_samples

    def __getitem__(self, layer: int) -> LayerRecords:
        """The records of a layer, as a sequence."""
        self._check_layer(layer)
        return LayerRecords(self, layer)

    def __repr__(self) -> str:
        return f"ActivationDataset({self.path!r}: {len(self)} samples, layers {self.layers})"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers, ascending."""
        return self.metadata.run.layers_extracted

    def records(self, layer: int, shard: int | None = None) -> Iterator[ActivationRecord]:
        """The records of a layer, or of one of its shards, in order.

        Raises:
            CorruptRecordError: a CRC does not match, a record is malformed, or a file holds more or
                fewer records than the metadata says.
        """
        self._check_layer(layer)
        shards = range(len(self.metadata.batches)) if shard is None else [shard]
        for each in shards:
            yield from self._shard_records(layer, each)

    def sample(self, layer: int, index: int) -> ActivationRecord:
        """One record. The first access to a shard reads the headers of all its records.

        Args:
            layer: number of the layer.
            index: number of the sample, 0..len - 1.

        Raises:
            CorruptRecordError: as `records`, for this record.
        """
        self._check_layer(layer)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} is not in 0..{len(self) - 1}")
        shard = bisect_right(self._ends, index)
        batch = self.metadata.batches[shard]
        number = index - (self._ends[shard] - batch.samples)
        path = batch.files[layer].path
        with self._folder.open(path) as stream:
            # All layers of a shard have records of the same sizes, so one index serves them all.
            if shard not in self._offsets:
                offsets = record_offsets(stream, path)
                _check_count(path, len(offsets) - 1, batch.samples, offsets[-1])
                self._offsets[shard] = np.array(offsets)
            offset = int(self._offsets[shard][number])
            data = read_record_at(stream, path, number, offset)
        return self._decode(data, path, number, offset)

    def _shard_records(self, layer: int, shard: int) -> Iterator[ActivationRecord]:
        batch = self.metadata.batches[shard]
        path = batch.files[layer].path
        number = offset = 0
        with self._folder.open(path) as stream:
            for data in read_records(stream, path):
                if number < batch.samples:
                    yield self._decode(data, path, number, offset)
                number += 1
                offset += HEADER_BYTES + len(data) + FOOTER_BYTES
        _check_count(path, number, batch.samples, offset)

    def _decode(self, data: memoryview, path: str, number: int, offset: int) -> ActivationRecord:
        try:
            example = decode_example(data)
            stored = self._kind.activation(example)
        except ExampleError as error:
            raise CorruptRecordError(path, number, offset, str(error)) from None
        sample = example.sample
        return ActivationRecord(
            sample.sample_id, sample.task_id, stored, sample.token_ids, sample.num_tokens
        )

    def _check_layer(self, layer: int) -> None:
        if layer not in self.layers:
            raise KeyError(f"layer {layer} is not in the dataset, which has {self.layers}")


class LayerRecords(Sequence[ActivationRecord]):
    """The records of one layer of a dataset: by index, or in order."""

    def __init__(self, dataset: ActivationDataset, layer: int) -> None:
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
        raise DatasetError(
            f"{path} has no {METADATA_FILE}: it is no dataset, or the run that writes it has not "
            "finished. Run the same command again to finish it"
        ) from None
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
