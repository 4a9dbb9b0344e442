"""TFRecord framing: how records are laid end to end in a file.

Each record is: length (uint64), masked CRC32C of those 8 bytes (uint32), the data, masked CRC32C
of the data (uint32); all little-endian. Source: tensorflow/core/lib/io/record_writer.h and
tsl/lib/hash/crc32c.h (the mask).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import Buffer, crc32c, extend

HEADER_BYTES = 12
FOOTER_BYTES = 4

_HEADER = struct.Struct("<QI")
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")

# What is wrong with a record.
LENGTH_CRC = "the CRC of the length does not match"
DATA_CRC = "the CRC of the data does not match"

ADVICE = (
    "python -m activation_dataset verify DATASET lists all that is damaged in it; running the same "
    "command of the job again writes that again"
)
"""What to do about a dataset that cannot be read."""

Crc = TypeVar("Crc", int, NDArray[np.int64])


class CorruptRecordError(ValueError):
    """A TFRecord file whose bytes are not what was written.

    Attributes: file (name), record (number within the file, from 0), offset (of the record's first
    byte), detail (what is wrong). A note, which tracebacks show, says what to do.
    """

    def __init__(self, file: str, record: int, offset: int, detail: str) -> None:
        super().__init__(f"{file}: record {record} at byte {offset}: {detail}")
        self.file, self.record, self.offset, self.detail = file, record, offset, detail
        self.add_note(ADVICE)

    def __reduce__(self) -> tuple[type[CorruptRecordError], tuple[str, int, int, str]]:
        return CorruptRecordError, (self.file, self.record, self.offset, self.detail)


def mask(crc: Crc) -> Crc:
    """The masked form in which TFRecord stores a CRC32C; of an int, or of int64s elementwise."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def masked_crc(*buffers: Buffer) -> int:
    """Masked CRC32C of the buffers, as if they were one; copies nothing."""
    return mask(crc32c(*buffers))


@lru_cache(maxsize=1024)
def frame_header(length: int) -> bytes:
    """The 12 bytes before a record's data of `length` bytes."""
    packed = _LENGTH.pack(length)
    return packed + _CRC.pack(mask(extend(0, packed)))


def frame_footer(crc: int) -> bytes:
    """The 4 bytes after a record's data, whose (unmasked) CRC32C is `crc`."""
    return _CRC.pack(mask(crc))


def read_records(stream: BinaryIO, name: str) -> Iterator[memoryview]:
    """Yields the data of each record, from the stream's position to its end.

    Args:
        stream: seekable binary stream.
        name: what errors call the file.

    Raises:
        CorruptRecordError: a CRC does not match, or the file ends inside a record. A length that
            reaches past the end of the file is refused before memory is allocated for it.
    """
    for data in scan_records(stream, name):
        if isinstance(data, CorruptRecordError):
            raise data
        yield data


def scan_records(stream: BinaryIO, name: str) -> Iterator[memoryview | CorruptRecordError]:
    """As `read_records`, but yields errors, and goes on after one where the length is sound."""
    offset, end = _extent(stream)
    record = 0
    while offset < end:
        try:
            length = _read_header(stream, name, record, offset, end)
        except CorruptRecordError as error:
            yield error
            return
        try:
            yield _read_data(stream, name, record, offset, length)
        except CorruptRecordError as error:
            yield error
        offset += HEADER_BYTES + length + FOOTER_BYTES
        record += 1


def record_data(block: NDArray[np.uint8], name: str, record: int, offset: int) -> memoryview:
    """The data of one record, checked.

    Args:
        block: [n] uint8, the bytes from the record's header to its footer.
        name, record, offset: the file, the record's number and its first byte, for errors.

    Raises:
        CorruptRecordError: a CRC does not match, or the record has another length.
    """
    check_header(block[:HEADER_BYTES], len(block), name, record, offset)
    data = block.data[HEADER_BYTES:-FOOTER_BYTES]
    if frame_footer(crc32c(data)) != block[-FOOTER_BYTES:].tobytes():
        raise CorruptRecordError(name, record, offset, DATA_CRC)
    return data


def check_header(header: NDArray[np.uint8], size: int, name: str, record: int, offset: int) -> None:
    """Checks the header, [12] uint8, of a record that must have `size` bytes with its framing.

    Raises:
        CorruptRecordError: it is another; `name`, `record` and `offset` are as in `record_data`.
    """
    found, expected = header.tobytes(), frame_header(size - HEADER_BYTES - FOOTER_BYTES)
    if found == expected:
        return
    length = _LENGTH.unpack(found[: _LENGTH.size])[0]
    if frame_header(length) != found:
        raise CorruptRecordError(name, record, offset, LENGTH_CRC)
    raise CorruptRecordError(
        name,
        record,
        offset,
        f"{length} bytes of data, expected {size - HEADER_BYTES - FOOTER_BYTES}",
    )


def _extent(stream: BinaryIO) -> tuple[int, int]:
    """The stream's position, which stays, and its end."""
    start = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    stream.seek(start)
    return start, end


def _read_header(stream: BinaryIO, name: str, record: int, offset: int, end: int) -> int:
    """Reads a header and returns the length of the data that follows, known to be in the file."""
    header = _read_fully(stream, HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        raise CorruptRecordError(
            name, record, offset, f"the file ends {len(header)} bytes into the 12-byte header"
        )
    length, stored = _HEADER.unpack(header)
    if stored != mask(extend(0, header[:8])):
        raise CorruptRecordError(name, record, offset, LENGTH_CRC)
    available = end - offset - HEADER_BYTES - FOOTER_BYTES
    if length > available:
        raise CorruptRecordError(
            name,
            record,
            offset,
            f"the length says {length} bytes of data, but the file has room for {available}",
        )
    return int(length)


def _read_data(stream: BinaryIO, name: str, record: int, offset: int, length: int) -> memoryview:
    """Reads a record's data and footer and returns the data, checked."""
    block = memoryview(_read_fully(stream, length + FOOTER_BYTES))
    if len(block) < length + FOOTER_BYTES:
        raise CorruptRecordError(
            name, record, offset, f"the file ends inside the data of {length} bytes"
        )
    data = block[:length]
    if _CRC.unpack(block[length:])[0] != masked_crc(data):
        raise CorruptRecordError(name, record, offset, DATA_CRC)
    return data


def _read_fully(stream: BinaryIO, count: int) -> bytes:
    """`count` bytes, or fewer at the end of the stream, even where one read returns less."""
    block = stream.read(count)
    if len(block) == count or not block:
        return block
    blocks = [block]
    missing = count - len(block)
    while missing and (block := stream.read(missing)):
        blocks.append(block)
        missing -= len(block)
    return b"".join(blocks)
