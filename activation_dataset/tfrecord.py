"""TFRecord framing of records in a file.

A record is: length (uint64), masked CRC32C of those 8 bytes (uint32), data, masked CRC32C of the
data (uint32); all little-endian. Source: tensorflow/core/lib/io/record_writer.h and
tsl/lib/hash/crc32c.h (the mask).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import crc32c

HEADER_BYTES = 12
FOOTER_BYTES = 4

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")

# Details of a CorruptRecordError.
LENGTH_CRC = "the CRC of the length does not match"
DATA_CRC = "the CRC of the data does not match"

ADVICE = (
    "python -m activation_dataset verify DATASET lists all damaged files; running the same command "
    "of the job again writes them again"
)
"""Remedy for a dataset that cannot be read."""

Crc = TypeVar("Crc", int, NDArray[np.int64])
Decoded = TypeVar("Decoded")


class CorruptRecordError(ValueError):
    """A damaged TFRecord file. A note, which tracebacks show, gives the remedy.

    Attributes:
        file: name of the file.
        record: number of the record in the file, from 0.
        offset: of the record's first byte.
        detail: what is wrong.
    """

    def __init__(self, file: str, record: int, offset: int, detail: str) -> None:
        super().__init__(f"{file}: record {record} at byte {offset}: {detail}")
        self.file, self.record, self.offset, self.detail = file, record, offset, detail
        self.add_note(ADVICE)

    def __reduce__(self) -> tuple[type[CorruptRecordError], tuple[str, int, int, str]]:
        return CorruptRecordError, (self.file, self.record, self.offset, self.detail)


def mask(crc: Crc) -> Crc:
    """The masked form in which TFRecord stores a CRC32C, elementwise for an array."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@lru_cache(maxsize=1024)
def frame_header(length: int) -> bytes:
    """The 12 bytes before the data of a record, `length` bytes."""
    packed = _LENGTH.pack(length)
    return packed + _CRC.pack(mask(crc32c(packed)))


def frame_footer(crc: int) -> bytes:
    """The 4 bytes after the data of a record, whose unmasked CRC32C is `crc`."""
    return _CRC.pack(mask(crc))


def read_records(stream: BinaryIO, name: str) -> Iterator[memoryview]:
    """The data of each record, from the stream's position to its end.

    Args:
        stream: seekable binary stream, buffered, so that a read returns all that it asks for.
        name: name of the file in errors.

    Raises:
        CorruptRecordError: a CRC does not match, or the file ends inside a record. A length that
            reaches past the end of the file is refused before memory is allocated for it.
    """
    offset = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    stream.seek(offset)
    record = 0
    while offset < end:
        header = stream.read(HEADER_BYTES)
        length = int.from_bytes(header[:8], "little")
        available = end - offset - HEADER_BYTES - FOOTER_BYTES
        if len(header) < HEADER_BYTES:
            detail = f"the file ends {len(header)} bytes into the 12-byte header"
        elif frame_header(length) != header:
            detail = LENGTH_CRC
        elif length > available:
            detail = f"the length says {length} bytes of data, the file has room for {available}"
        else:
            block = memoryview(stream.read(length + FOOTER_BYTES))
            data = block[:length]
            if frame_footer(crc32c(data)) == block[length:]:
                yield data
                offset += HEADER_BYTES + length + FOOTER_BYTES
                record += 1
                continue
            detail = DATA_CRC
        raise CorruptRecordError(name, record, offset, detail)


def decode_records(
    stream: BinaryIO, name: str, decode: Callable[[memoryview], Decoded]
) -> Iterator[Decoded]:
    """The decoded data of each record, from the stream's position to its end.

    Args:
        stream: seekable binary stream.
        name: name of the file in errors.
        decode: decodes the data of a record, or raises ValueError.

    Raises:
        CorruptRecordError: as `read_records`, or the data cannot be decoded.
    """
    offset = stream.tell()
    for number, data in enumerate(read_records(stream, name)):
        try:
            yield decode(data)
        except ValueError as error:
            raise CorruptRecordError(name, number, offset, str(error)) from None
        offset += HEADER_BYTES + len(data) + FOOTER_BYTES


def record_data(block: NDArray[np.uint8], name: str, record: int, offset: int) -> memoryview:
    """The data of one record, after a check of its CRCs.

    Args:
        block: [n] uint8, the bytes from the record's header to its footer.
        name: name of the file in errors.
        record: number of the record in errors.
        offset: of the record's first byte in errors.

    Raises:
        CorruptRecordError: a CRC does not match, or the record has another length.
    """
    check_header(block[:HEADER_BYTES], len(block), name, record, offset)
    data = block.data[HEADER_BYTES:-FOOTER_BYTES]
    if frame_footer(crc32c(data)) != block[-FOOTER_BYTES:].tobytes():
        raise CorruptRecordError(name, record, offset, DATA_CRC)
    return data


def check_header(header: NDArray[np.uint8], size: int, name: str, record: int, offset: int) -> None:
    """Check the header of a record against the size that the index gives.

    Args:
        header: [12] uint8.
        size: bytes of the record with its framing.
        name, record, offset: as in `record_data`.

    Raises:
        CorruptRecordError: the header is damaged or has another length.
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
