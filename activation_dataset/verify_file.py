"""Verifying one layer file: its every byte follows from its samples, but for the activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import combine, crc32c, extend, to_text
from activation_dataset.example import ExampleError, decode_example
from activation_dataset.format import Sample, numpy_dtype, shard_file
from activation_dataset.manifest import LayerFile, ShardManifest
from activation_dataset.record import RecordFrame, RecordKind, frame_record
from activation_dataset.statistics import StatisticsBuilder
from activation_dataset.tfrecord import (
    FOOTER_BYTES,
    HEADER_BYTES,
    CorruptRecordError,
    mask,
    scan_records,
)

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]

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


@dataclass(frozen=True, eq=False)
class _Group:
    """Some records that are read together, and all that is known of their bytes beforehand.

    Attributes:
        size: bytes of all.
        data: where each record's data lies.
        payloads: where each activation lies.
        gaps: what lies before, between and behind the activations.
        gap_bytes: [n] uint8, the gaps end to end, with zeros for the CRCs of the data.
        crcs: [4 * records], where those CRCs lie in gap_bytes.
    """

    size: int
    data: list[slice]
    payloads: list[slice]
    gaps: list[slice]
    gap_bytes: Bytes
    crcs: NDArray[np.int64]

    @classmethod
    def of(cls, frames: Sequence[RecordFrame]) -> _Group:
        data, payloads, gaps, known = [], [], [], []
        crcs: list[int] = []
        position = gap = gap_bytes = 0
        for frame in frames:
            payload = position + len(frame.head)
            suffix = payload + frame.payload_bytes
            footer = suffix + len(frame.suffix)
            data.append(slice(position + HEADER_BYTES, footer))
            payloads.append(slice(payload, suffix))
            gaps.append(slice(gap, payload))
            gap = suffix
            known += [frame.head, frame.suffix, bytes(FOOTER_BYTES)]
            gap_bytes += len(frame.head) + len(frame.suffix) + FOOTER_BYTES
            crcs += range(gap_bytes - FOOTER_BYTES, gap_bytes)
            position += frame.size
        gaps.append(slice(gap, position))
        return cls(
            position,
            data,
            payloads,
            gaps,
            np.frombuffer(b"".join(known), np.uint8),
            np.array(crcs, np.int64),
        )

    def check(self, block: Bytes) -> list[int] | None:
        """CRC32C of each record's data in the bytes of the group; None if they are not right."""
        crcs = [crc32c(block[span]) for span in self.data]
        found = np.concatenate([block[span] for span in self.gaps])
        stored = found[self.crcs]
        found[self.crcs] = 0
        if not np.array_equal(found, self.gap_bytes):
            return None
        return crcs if np.array_equal(stored.view("<u4"), mask(np.array(crcs))) else None

    def rows(self, block: Bytes) -> Bytes:
        """The activations' bytes end to end; a view if there is only one."""
        if len(self.payloads) == 1:
            return block[self.payloads[0]]
        return np.concatenate([block[span] for span in self.payloads])


class ExpectedRecords:
    """What the layer files of a shard must hold; made once, used for all its layers.

    Args:
        kind: of the records.
        samples: the shard's samples, in order.
    """

    def __init__(self, kind: RecordKind, samples: Sequence[Sample]) -> None:
        self.kind = kind
        self.samples = tuple(samples)
        self.tokens = sum(sample.num_tokens for sample in samples)
        self.vectors = sum(kind.vectors(sample) for sample in samples)
        self._groups = [_Group.of(frames) for frames in _grouped(samples, kind)]


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
    for group in expected._groups:
        # A record that is read by itself is put where its activation is aligned.
        shift = -group.payloads[0].start % 64
        if len(buffer) < shift + group.size:
            buffer = np.empty(shift + group.size, np.uint8)
        block = buffer[shift : shift + group.size]
        crcs = group.check(block) if _fill(stream, block) else None
        if crcs is None:
            raise _diagnosis(stream, path, expected)
        if len(crcs) == 1:  # then it may be large: the bytes are summed once
            crc = extend(crc, block[:HEADER_BYTES])
            crc = combine(crc, crcs[0], group.size - HEADER_BYTES - FOOTER_BYTES)
            crc = extend(crc, block[-FOOTER_BYTES:])
        else:
            crc = extend(crc, block)
        size += group.size
        rows = group.rows(block).view(numpy_dtype(expected.kind.storage_dtype))
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


def _fill(stream: BinaryIO, block: Bytes) -> bool:
    """Reads until the block is full; False if the stream ends before."""
    view = block.data
    while len(view):
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            return False
        view = view[count:]
    return True
