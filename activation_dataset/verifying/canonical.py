"""Reading the records of a file many at a time, if they are just as this package encodes them.

Protobuf allows many encodings of a record; here only the one is taken that `record.py` makes. A
record that is taken is therefore, byte for byte, what would be written for its sample. Whatever is
not taken is for `example.py`, which is slower and says what is wrong.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from activation_dataset import native
from activation_dataset.checksum import c_extend, crc32c_of_spans
from activation_dataset.protobuf import field, varint
from activation_dataset.reuse import windows
from activation_dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, mask
from activation_dataset.verifying.sample_table import SampleTable

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]

# Bytes behind a block that may be looked at, though they are none of it.
_SLACK = 64
_MAX_VARINT = 5  # bytes, for values below 2^35
_LENGTH = struct.Struct("<Q")
_BYTES_LIST, _INT64_LIST = b"\x0a", b"\x1a"


class NotCanonicalError(ValueError):
    """A file that is damaged, or not encoded as this package encodes it."""


@dataclass(frozen=True, eq=False)
class RecordBlock:
    """Some whole records of a file, their CRCs checked.

    Attributes:
        data: [size] uint8, their bytes; overwritten by the next block.
        starts, ends: [n] int64, where each record starts and ends in `data`.
    """

    data: Bytes
    starts: Int64s
    ends: Int64s


@dataclass(frozen=True, eq=False)
class ParsedRecords:
    """What the records of a block hold.

    Attributes:
        samples: their samples.
        payload_starts, payload_ends: [n] int64, places in the block.
    """

    samples: SampleTable
    payload_starts: Int64s
    payload_ends: Int64s


_Spans = tuple[Int64s, Int64s]


@dataclass(frozen=True, eq=False)
class _Parts:
    """Where the parts of n records start and end in their block, [n] int64 each, and num_tokens."""

    payloads: _Spans
    num_tokens: Int64s
    sample_ids: _Spans
    task_ids: _Spans
    token_ids: _Spans


def read_blocks(stream: BinaryIO, block_bytes: int) -> Iterator[RecordBlock]:
    """The records of a file, from the stream's position on, many at a time.

    Args:
        stream: seekable binary stream.
        block_bytes: at most as many at a time, or one record.

    Raises:
        NotCanonicalError: a CRC does not match, or the file ends inside a record.
    """
    start = stream.tell()
    remaining = stream.seek(0, io.SEEK_END) - start
    stream.seek(start)
    buffer = np.empty(block_bytes + _SLACK, np.uint8)
    filled, wanted = 0, block_bytes
    while remaining or filled:
        size = min(wanted - filled, remaining)
        if not fill(stream, buffer[filled : filled + size]):
            raise NotCanonicalError("the file became shorter while it was read")
        remaining -= size
        filled += size
        ends, needed = _find_records(buffer[:filled])
        if len(ends):
            yield RecordBlock(buffer, np.concatenate([[0], ends[:-1]]), ends)
            done = int(ends[-1])
            filled, wanted = filled - done, block_bytes
            buffer[:filled] = buffer[done : done + filled].copy()
        elif needed > filled + remaining:
            raise NotCanonicalError("the file ends inside a record")
        else:  # of a large record just as much as is missing, so that nothing has to be moved
            wanted = needed
            if wanted > len(buffer) - _SLACK:
                buffer = np.concatenate(
                    [buffer[:filled], np.empty(wanted - filled + _SLACK, np.uint8)]
                )


def parse_records(
    block: RecordBlock, payload: bytes, width: int, every_token: bool, tokens_kept: int | None
) -> ParsedRecords:
    """Takes the records of a block apart.

    Args:
        block: the records.
        payload: name of the feature that comes first and holds any bytes.
        width: last number of the feature `shape`.
        every_token: whether `shape` is [num_tokens, width], else [width].
        tokens_kept: number of `token_ids`, None for `num_tokens`.

    Raises:
        NotCanonicalError: a record is not just as this package encodes it. (Also one without tokens
            or with a token from 2^28 on, which are too rare to be fast.)
    """
    take = _take_apart if native.library is None else _take_apart_by_library
    parts = take(block, payload, width, every_token)
    tokens = np.concatenate([block.data[span] for span in _slices(*parts.token_ids)])
    starts, ends = parts.token_ids
    token_ends = np.cumsum(ends - starts)
    kept = parts.num_tokens if tokens_kept is None else tokens_kept
    if (count_varints(tokens, token_ends) != kept).any():
        raise NotCanonicalError("token_ids has another number of tokens")
    samples = SampleTable(
        _texts(block.data, parts.sample_ids),
        _texts(block.data, parts.task_ids),
        parts.num_tokens,
        tokens,
        token_ends,
    )
    return ParsedRecords(samples, *parts.payloads)


def fill(stream: BinaryIO, block: Bytes) -> bool:
    """Reads until the block is full; False if the stream ends before."""
    view = block.data
    while len(view):
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            return False
        view = view[count:]
    return True


def _find_records(block: Bytes) -> tuple[Int64s, int]:
    """Ends of the whole records in a block, checked, and how many bytes one more would need."""
    if native.library is not None and c_extend is not None:
        ends_found = np.empty(len(block) // HEADER_BYTES, np.int64)
        bytes_needed = np.empty(1, np.int64)
        count = native.library.FindRecords(
            c_extend,
            native.address(block),
            len(block),
            len(ends_found),
            native.address(ends_found),
            native.address(bytes_needed),
        )
        if count < 0:
            raise NotCanonicalError("a CRC does not match")
        return ends_found[:count].copy(), int(bytes_needed[0])
    view = block.data
    ends: list[int] = []
    position = 0
    needed = HEADER_BYTES
    while position + HEADER_BYTES <= len(view):
        needed = HEADER_BYTES + _LENGTH.unpack_from(view, position)[0] + FOOTER_BYTES
        if position + needed > len(view):
            break
        position += needed
        ends.append(position)
        needed = HEADER_BYTES
    # No length is believed before its CRC has been checked; the last may be of half a record.
    lengths = np.array([0, *ends] if needed > HEADER_BYTES else [0, *ends][:-1], np.int64)
    _check(block, lengths, lengths + _LENGTH.size)
    _check(block, lengths[: len(ends)] + HEADER_BYTES, np.array(ends, np.int64) - FOOTER_BYTES)
    return np.array(ends, np.int64), position + needed


def _check(block: Bytes, starts: Int64s, ends: Int64s) -> None:
    """Compares the CRC of each block[start:end] with the four bytes behind it."""
    if not len(starts):
        return
    stored = windows(block, FOOTER_BYTES)[ends].view("<u4")[:, 0]
    if not np.array_equal(stored, mask(crc32c_of_spans(block, starts, ends))):
        raise NotCanonicalError("a CRC does not match")


def _slices(starts: Int64s, ends: Int64s) -> list[slice]:
    return [slice(*span) for span in zip(starts.tolist(), ends.tolist(), strict=True)]


def _texts(block: Bytes, spans: _Spans) -> list[str]:
    view = block.data
    try:
        return [str(view[span], "utf-8") for span in _slices(*spans)]
    except UnicodeDecodeError as error:
        raise NotCanonicalError(str(error)) from None


def count_varints(packed: Bytes, ends: Int64s) -> Int64s:
    """Counts the varints in spans that follow each other.

    Args:
        packed: [bytes] uint8, contiguous.
        ends: [n] int64, where each span ends.

    Returns:
        [n] int64; all -1 if a varint is not whole, of 1 to 4 bytes and shortest, or a span empty.
    """
    unusual = np.full(len(ends), -1, np.int64)
    if native.library is not None:
        counts = np.empty(len(ends), np.int64)
        usual = native.library.CountVarints(
            native.address(packed), native.address(ends), len(ends), native.address(counts)
        )
        return counts if usual else unusual
    last = packed < 0x80
    more = ~last
    starts = np.concatenate([[0], ends[:-1]])
    whole = (ends > starts).all() and last[ends - 1].all()
    short = not (more[:-3] & more[1:-2] & more[2:-1] & more[3:]).any()
    shortest = not ((packed[1:] == 0) & more[:-1]).any()
    if whole and short and shortest:
        return np.array([np.count_nonzero(last[span]) for span in _slices(starts, ends)], np.int64)
    return unusual


def _take_apart_by_library(
    block: RecordBlock, payload: bytes, width: int, every_token: bool
) -> _Parts:
    assert native.library is not None
    num_tokens = np.empty(len(block.ends), np.int64)
    spans = np.empty((4, 2, len(block.ends)), np.int64)
    unusual = native.library.ParseRecords(
        native.address(block.data),
        native.address(block.starts),
        native.address(block.ends),
        len(block.ends),
        payload,
        len(payload),
        width,
        every_token,
        native.address(num_tokens),
        native.address(spans),
    )
    if unusual >= 0:
        raise NotCanonicalError(f"record {unusual} of a block is unusual")
    payloads, sample_ids, task_ids, token_ids = ((starts, ends) for starts, ends in spans)
    return _Parts(payloads, num_tokens, sample_ids, task_ids, token_ids)


def _take_apart(block: RecordBlock, payload: bytes, width: int, every_token: bool) -> _Parts:
    cursor = _Cursor(block)
    payloads = cursor.value(payload, _BYTES_LIST)
    _, ends = cursor.feature(b"num_tokens", _INT64_LIST)
    num_tokens = cursor.varint()
    cursor.arrive_at(ends)
    sample_ids = cursor.value(b"sample_id", _BYTES_LIST)
    _, ends = cursor.feature(b"shape", _INT64_LIST)
    if every_token:
        cursor.require(cursor.varint() == num_tokens)
    cursor.literal(varint(width))
    cursor.arrive_at(ends)
    task_ids = cursor.value(b"task_id", _BYTES_LIST)
    token_ids = cursor.value(b"token_ids", _INT64_LIST)
    cursor.arrive_at(block.ends - FOOTER_BYTES)
    return _Parts(payloads, num_tokens, sample_ids, task_ids, token_ids)


class _Cursor:
    """A place in the data of each of n records, all at the same point of the encoding.

    Its methods move all places on; they raise NotCanonicalError if a record has something else.
    """

    def __init__(self, block: RecordBlock) -> None:
        self._block = block.data
        self._at = block.starts + HEADER_BYTES
        self._ends = block.ends - FOOTER_BYTES
        self.require(self.enter(b"\x0a") == self._ends)

    def require(self, condition: NDArray[np.bool_]) -> None:
        if not condition.all():
            raise NotCanonicalError(f"record {int(condition.argmin())} of a block is unusual")

    def enter(self, tag: bytes) -> Int64s:
        """[n] int64: the end of the field of that tag, whose content is where the places are."""
        self.literal(tag)
        ends = self.varint() + self._at
        self.require(ends <= self._ends)
        return ends

    def feature(self, name: bytes, list_tag: bytes) -> _Spans:
        """Start and end of the one value, or packed values, of the feature."""
        ends = self.enter(b"\x0a")
        self.literal(field(b"\x0a", name))
        for tag in (b"\x12", list_tag, b"\x0a"):
            self.require(self.enter(tag) == ends)
        return self._at, ends

    def value(self, name: bytes, list_tag: bytes) -> _Spans:
        """As `feature`; the places are behind it."""
        starts, ends = self.feature(name, list_tag)
        self._at = ends
        return starts, ends

    def literal(self, text: bytes) -> None:
        found = windows(self._block, len(text))[self._at]
        self.require((found == np.frombuffer(text, np.uint8)).all(axis=1))
        self._at = self._at + len(text)

    def varint(self) -> Int64s:
        """[n] int64: a number of at most 5 bytes, in the shortest encoding."""
        bytes_ = self._block[self._at]
        values = (bytes_ & 0x7F).astype(np.int64)
        self._at = self._at + 1
        longer = np.flatnonzero(bytes_ >= 0x80)
        for shift in range(7, 7 * _MAX_VARINT, 7):
            if not len(longer):
                break
            bytes_ = self._block[self._at[longer]]
            values[longer] |= (bytes_ & 0x7F).astype(np.int64) << shift
            self._at[longer] += 1
            self.require(bytes_ != 0)
            longer = longer[bytes_ >= 0x80]
        self.require(np.array([not len(longer)]))
        return values

    def arrive_at(self, ends: Int64s) -> None:
        self.require(self._at == ends)
