"""Verifying one layer file: its every byte follows from its samples, but for the activations."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import to_text
from activation_dataset.example import ACTIVATION, ExampleError, decode_example
from activation_dataset.format import Sample, numpy_dtype, shard_file
from activation_dataset.manifest import LayerFile, LayerManifest
from activation_dataset.record import RecordFrame, RecordKind, frame_record
from activation_dataset.reuse import Scratch
from activation_dataset.sites import Site
from activation_dataset.statistics_builder import BLOCK_ROWS, StatisticsBuilder
from activation_dataset.tfrecord import CorruptRecordError, scan_records
from activation_dataset.verifying.canonical import (
    NotCanonicalError,
    parse_records,
    read_blocks,
)
from activation_dataset.verifying.known_records import descriptor_of, read_known_records
from activation_dataset.verifying.record_group import RecordGroup
from activation_dataset.verifying.sample_table import SampleTable

# Records are read in groups of about this size, a larger record by itself.
_GROUP_BYTES = 1 << 21
# … and in pieces of this size, which stay in a core's cache.
_PIECE_BYTES = 1 << 20
_MAX_PROBLEMS = 5


class LayerFileError(ValueError):
    """A layer file that is not what it must be.

    Attributes: problems, each a phrase without the file's name; the first few of one kind.
    """

    def __init__(self, file: str, problems: Sequence[str]) -> None:
        super().__init__(f"{file}: " + "; ".join(problems))
        self.file, self.problems = file, tuple(problems)


class ExpectedRecords:
    """What the layer files of a shard must hold; made once, used for all its layers.

    Attributes:
        kind: of the records.
        table: the shard's samples, in order.
        groups: their records, in order.
        scratch: for reading them.

    Args:
        kind: of the records.
        samples: the shard's samples, in order.
        groups: their records, in order, if they are known already.
    """

    def __init__(
        self,
        kind: RecordKind,
        samples: Sequence[Sample] | SampleTable,
        groups: Sequence[RecordGroup] | None = None,
    ) -> None:
        self.kind = kind
        self.table = samples if isinstance(samples, SampleTable) else SampleTable.of(samples)
        if groups is None:
            groups = [RecordGroup.of_frames(frames) for frames in _grouped(self.samples, kind)]
        self.groups = groups
        self.scratch = Scratch()

    @classmethod
    def read(cls, stream: BinaryIO, kind: RecordKind) -> ExpectedRecords:
        """What the other files of a shard must hold, going by a layer file that is sound.

        Args:
            stream: seekable binary stream, read from its beginning.
            kind: of the records.

        Raises:
            NotCanonicalError: it is not sound; `read_samples` says what is wrong.
        """
        stream.seek(0)
        every_token = kind.pooling == "none"
        groups, tables = [], []
        for block in read_blocks(stream, _GROUP_BYTES):
            records = parse_records(
                block, ACTIVATION, kind.hidden, every_token, 1 if kind.pooling == "last" else None
            )
            sizes = records.payload_ends - records.payload_starts
            vectors = records.samples.num_tokens if every_token else 1
            if (sizes != vectors * kind.vector_bytes).any():
                raise NotCanonicalError("an activation has another size than its shape")
            tables.append(records.samples)
            groups.append(
                RecordGroup.of_block(
                    block.data, block.ends, records.payload_starts, records.payload_ends
                )
            )
        return cls(kind, SampleTable.joined(tables), groups)

    @cached_property
    def samples(self) -> list[Sample]:
        """The samples one by one."""
        return self.table.samples()

    @property
    def tokens(self) -> int:
        """Tokens of all prompts."""
        return int(self.table.num_tokens.sum())

    @property
    def vectors(self) -> int:
        """Vectors of all records."""
        return self.tokens if self.kind.pooling == "none" else len(self.table)


def verify_file(
    stream: BinaryIO, layer: Site, shard: int, num_shards: int, expected: ExpectedRecords
) -> LayerManifest:
    """Checks a layer file against its samples and returns the manifest that its writer returned.

    Nothing is trusted: every record's framing, CRCs, encoding, sample, shape and token_ids are
    compared with what a writer would have written; size, CRC32C and statistics are recomputed.

    Args:
        stream: seekable binary stream, read from its beginning.
        layer, shard, num_shards: what the file is.
        expected: what it must hold.

    Raises:
        LayerFileError: the file is anything else; says all that is wrong with it.
        OSError: from the stream.
    """
    path = shard_file(layer, shard, num_shards)
    kind = expected.kind
    statistics = StatisticsBuilder(kind.hidden)
    try:
        if (descriptor := descriptor_of(stream)) is not None:
            bfloat16 = kind.storage_dtype == "bfloat16"
            crc = read_known_records(descriptor, expected.groups, bfloat16, statistics)
        else:
            crc = _read_groups(stream, expected, statistics)
    except NotCanonicalError:
        raise _diagnosis(stream, path, expected) from None
    size = sum(group.size for group in expected.groups)
    if stream.seek(0, io.SEEK_END) != size:
        raise _diagnosis(stream, path, expected)
    return LayerManifest(
        shard=shard,
        samples=len(expected.table),
        tokens=expected.tokens,
        vectors=expected.vectors,
        file=LayerFile(layer, path, size, to_text(crc), statistics.result()),
    )


def _read_groups(stream: BinaryIO, expected: ExpectedRecords, statistics: StatisticsBuilder) -> int:
    """As `read_known_records`, of any stream."""
    kind = expected.kind
    dtype = numpy_dtype(kind.storage_dtype)
    blocks_of_rows = max(1, _PIECE_BYTES // (BLOCK_ROWS * kind.vector_bytes)) * BLOCK_ROWS

    def piece_bytes() -> int:  # whole blocks need not be copied
        return (statistics.rows_to_block or blocks_of_rows) * kind.vector_bytes

    def take(activations: NDArray[np.uint8]) -> None:
        statistics.update(activations.view(dtype).reshape(-1, kind.hidden))

    stream.seek(0)
    crc = 0
    for group in expected.groups:
        crc = group.read(stream, crc, expected.scratch, piece_bytes, take)
    return crc


def expected_records(stream: BinaryIO, file: str, kind: RecordKind) -> ExpectedRecords:
    """What the files of a shard must hold, going by one of its layer files.

    Args:
        stream: seekable binary stream, read from its beginning.
        file: what errors call it.
        kind: of the records.

    Raises:
        LayerFileError: a record is corrupt or not of that kind; says all that is wrong.
    """
    try:
        return ExpectedRecords.read(stream, kind)
    except NotCanonicalError:
        return ExpectedRecords(kind, read_samples(stream, file, kind))


def read_samples(stream: BinaryIO, file: str, kind: RecordKind) -> list[Sample]:
    """The samples of a layer file, every record checked.

    Args:
        stream: seekable binary stream, read from its beginning.
        file: what errors call it.
        kind: of the records.

    Raises:
        LayerFileError: a record is corrupt or not of that kind; says all that is wrong.
    """
    samples: list[Sample] = []
    problems = Problems()
    for number, record in enumerate(_scan(stream, file)):
        try:
            if isinstance(record, CorruptRecordError):
                raise record
            example = decode_example(record)
            kind.activation(example)
            samples.append(example.sample)
        except (CorruptRecordError, ExampleError) as error:
            problems.add(number, error)
    if problems.phrases:
        raise LayerFileError(file, problems.phrases)
    return samples


def check_records(stream: BinaryIO, file: str) -> list[str]:
    """All that is wrong with a layer file, without knowing what it must hold.

    Args:
        stream: seekable binary stream, read from its beginning.
        file: what errors call it.
    """
    problems = Problems()
    for number, record in enumerate(_scan(stream, file)):
        try:
            if isinstance(record, CorruptRecordError):
                raise record
            decode_example(record)
        except (CorruptRecordError, ExampleError) as error:
            problems.add(number, error)
    return problems.phrases


class Problems:
    """Phrases about records, the first few in full and the rest as a number."""

    def __init__(self) -> None:
        self._phrases: list[str] = []
        self._count = 0

    def add(self, number: int, error: Exception | str) -> None:
        self._count += 1
        if len(self._phrases) < _MAX_PROBLEMS:
            place = f"record {number}"
            if isinstance(error, CorruptRecordError):
                place, error = f"{place} at byte {error.offset}", error.detail
            self._phrases.append(f"{place}: {error}")

    @property
    def phrases(self) -> list[str]:
        more = self._count - len(self._phrases)
        return self._phrases + ([f"{more} more records are wrong"] if more else [])


def _diagnosis(stream: BinaryIO, path: str, expected: ExpectedRecords) -> LayerFileError:
    """Reads a file again that did not compare equal, slowly, to say what is wrong with it."""
    problems = Problems()
    number = -1
    for number, record in enumerate(_scan(stream, path)):
        try:
            if isinstance(record, CorruptRecordError):
                raise record
            example = decode_example(record)
            expected.kind.activation(example)
        except (CorruptRecordError, ExampleError) as error:
            problems.add(number, error)
            continue
        if number < len(expected.samples):
            difference = _difference(example.sample, expected.samples[number])
            frame = frame_record(expected.samples[number], expected.kind)
            canonical = record[: len(frame.prefix)] == frame.prefix and (
                record[len(record) - len(frame.suffix) :] == frame.suffix
            )
            if difference or not canonical:
                problems.add(number, difference or "not encoded as this version encodes it")
    phrases = problems.phrases
    if number + 1 != len(expected.samples):
        phrases.append(f"{number + 1} records, expected {len(expected.samples)}")
    return LayerFileError(path, phrases or ["changed while it was read"])


def _difference(found: Sample, expected: Sample) -> str:
    """What tells a sample from the expected one, or nothing."""
    if found == expected:
        return ""
    if found.sample_id != expected.sample_id:
        return f"sample {found.sample_id!r}, expected {expected.sample_id!r}"
    names = [
        name
        for name in ("task_id", "num_tokens", "token_ids")
        if not np.array_equal(getattr(found, name), getattr(expected, name))
    ]
    return f"sample {found.sample_id!r} has other {' and '.join(names)} than expected"


def _scan(stream: BinaryIO, file: str) -> Iterator[memoryview | CorruptRecordError]:
    stream.seek(0)
    return scan_records(stream, file)


def _grouped(samples: Sequence[Sample], kind: RecordKind) -> Iterator[list[RecordFrame]]:
    """The samples' frames, in runs of about `_GROUP_BYTES` in the file."""
    group: list[RecordFrame] = []
    size = 0
    for sample in samples:
        frame = frame_record(sample, kind)
        if group and size + frame.size > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(frame)
        size += frame.size
    if group:
        yield group
