"""Verifying one layer file: its every byte follows from its samples, but for the activations."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from activation_dataset.checksum import combine, crc32c, extend, to_text
from activation_dataset.example import ExampleError, decode_example
from activation_dataset.format import Sample, numpy_dtype, shard_file
from activation_dataset.metadata import LayerFile, ShardManifest
from activation_dataset.record import RecordFrame, RecordKind, frame_record
from activation_dataset.statistics import StatisticsBuilder
from activation_dataset.tfrecord import (
    FOOTER_BYTES,
    HEADER_BYTES,
    CorruptRecordError,
    mask,
    scan_records,
)

_FOOTER = struct.Struct("<I")
# Records are read in groups of about this size, a larger record by itself.
_GROUP_BYTES = 1 << 20
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

    Args:
        kind: of the records.
        samples: the shard's samples, in order.
    """

    def __init__(self, kind: RecordKind, samples: Sequence[Sample]) -> None:
        self.kind = kind
        self.samples = tuple(samples)
        self.frames = tuple(frame_record(sample, kind) for sample in samples)
        self.tokens = sum(sample.num_tokens for sample in samples)
        self.vectors = sum(kind.vectors(sample) for sample in samples)


def verify_file(
    stream: BinaryIO, layer: int, shard: int, num_shards: int, expected: ExpectedRecords
) -> ShardManifest:
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
    statistics = StatisticsBuilder(expected.kind.hidden)
    stream.seek(0)
    buffer = np.empty(0, np.uint8)
    crc = size = 0
    for group in _groups(expected.frames):
        group_bytes = sum(frame.size for frame in group)
        # A record read by itself is put where its payload is aligned.
        shift = -len(group[0].head) % 64
        if len(buffer) < shift + group_bytes:
            buffer = np.empty(shift + group_bytes, np.uint8)
        data = buffer[shift : shift + group_bytes]
        crcs = _check_group(data, group) if _fill(stream, data) else None
        if crcs is None:
            raise _diagnosis(stream, path, expected)
        if len(group) == 1:
            crc = extend(crc, data[:HEADER_BYTES])
            crc = combine(crc, crcs[0], group_bytes - HEADER_BYTES - FOOTER_BYTES)
            crc = extend(crc, data[-FOOTER_BYTES:])
        else:
            crc = extend(crc, data)
        size += group_bytes
        rows = _payloads(data, group).view(numpy_dtype(expected.kind.storage_dtype))
        statistics.update(rows.reshape(-1, expected.kind.hidden))
    if stream.read(1):
        raise _diagnosis(stream, path, expected)
    return ShardManifest(
        shard=shard,
        samples=len(expected.samples),
        tokens=expected.tokens,
        vectors=expected.vectors,
        file=LayerFile(layer, path, size, to_text(crc), statistics.result()),
    )


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
    problems = _Problems()
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
    problems = _Problems()
    for number, record in enumerate(_scan(stream, file)):
        try:
            if isinstance(record, CorruptRecordError):
                raise record
            decode_example(record)
        except (CorruptRecordError, ExampleError) as error:
            problems.add(number, error)
    return problems.phrases


class _Problems:
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
    problems = _Problems()
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
            frame = expected.frames[number]
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


def _groups(frames: Sequence[RecordFrame]) -> Iterator[Sequence[RecordFrame]]:
    """Runs of frames of about `_GROUP_BYTES` in the file."""
    start = size = 0
    for index, frame in enumerate(frames):
        if index > start and size + frame.size > _GROUP_BYTES:
            yield frames[start:index]
            start, size = index, 0
        size += frame.size
    if start < len(frames):
        yield frames[start:]


def _fill(stream: BinaryIO, data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bool:
    """Reads until `data` [n] is full; False if the stream ends before."""
    view = data.data
    while len(view):
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            return False
        view = view[count:]
    return True


def _check_group(
    data: np.ndarray[tuple[int], np.dtype[np.uint8]], group: Sequence[RecordFrame]
) -> list[int] | None:
    """CRC32C of the data of each record of a group, or None if one is not as its frame says."""
    view = data.data
    crcs = []
    start = 0
    for frame in group:
        payload = start + len(frame.head)
        suffix = payload + frame.payload_bytes
        footer = suffix + len(frame.suffix)
        crc = crc32c(data[start + HEADER_BYTES : footer])
        if (
            _FOOTER.unpack_from(view, footer)[0] != mask(crc)
            or bytes(view[start:payload]) != frame.head
            or bytes(view[suffix:footer]) != frame.suffix
        ):
            return None
        crcs.append(crc)
        start += frame.size
    return crcs


def _payloads(
    data: np.ndarray[tuple[int], np.dtype[np.uint8]], group: Sequence[RecordFrame]
) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The activations' bytes of a group, end to end; a view if there is only one."""
    pieces = []
    start = 0
    for frame in group:
        payload = start + len(frame.head)
        pieces.append(data[payload : payload + frame.payload_bytes])
        start += frame.size
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
