"""TFRecord framing of records in a file.

A record consists of the length (uint64), the masked CRC32C of the length (uint32), the data, and
the masked CRC32C of the data (uint32), all little-endian. Source:
tensorflow/core/lib/io/record_writer.h and tsl/lib/hash/crc32c.h (the mask).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import crc32c

HEADER_BYTES = 12
FOOTER_BYTES = 4


# Values of CorruptRecordError.detail.
LENGTH_CRC = "the CRC of the length does not match"
DATA_CRC = "the CRC of the data does not match"

Crc = TypeVar("Crc", int, NDArray[np.int64])


class CorruptRecordError(ValueError):
    """Error for a damaged TFRecord file.

    Attributes:
        file: name of the file.
        record: number of the record.
        offset: offset of the record's first byte.
        detail: description of the damage.
        advice: remedy; "" if the file does not belong to a dataset.
    """

    def __init__(self, file: str, record: int, offset: int, detail: str, advice: str = "") -> None:
        said = f"{file}: record {record} at byte {offset}: {detail}"
        super().__init__(f"{said}. {advice}" if advice else said)
        self.file, self.record, self.offset, self.detail = file, record, offset, detail
        self.advice = advice

    def __reduce__(self) -> tuple[type[CorruptRecordError], tuple[str, int, int, str, str]]:
        place = (self.file, self.record, self.offset, self.detail)
        return CorruptRecordError, (*place, self.advice)


def mask(crc: Crc) -> Crc:
    """Return a CRC32C in the masked form that TFRecord stores, elementwise for an array."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@lru_cache(maxsize=1024)
def frame_header(length: int) -> bytes:
    """Return the 12 bytes before the data of a record with `length` bytes of data."""
    packed = length.to_bytes(8, "little")
    return packed + frame_footer(crc32c(packed))


def frame_footer(crc: int) -> bytes:
    """Return the 4 bytes after the data of a record. `crc` is the unmasked CRC32C of the data."""
    return mask(crc).to_bytes(4, "little")


def read_records(
    stream: BinaryIO, name: str, decode: Callable[[memoryview], Any] = memoryview
) -> Iterator[Any]:
    """Yield the decoded data of each record, from the stream's position to its end.

    Args:
        stream: seekable, buffered binary stream, whose `read` returns all requested bytes.
        name: name of the file in error messages.
        decode: function that decodes the data of a record, or raises ValueError.

    Raises:
        CorruptRecordError: if a CRC does not match, the file ends inside a record, or the data
            cannot be decoded. A length past the end of the file is rejected before any memory is
            allocated.
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
            detail = f"the length is {length} bytes of data, but only {available} bytes follow"
        else:
            block = memoryview(stream.read(length + FOOTER_BYTES))
            data = block[:length]
            if frame_footer(crc32c(data)) == block[length:]:
                try:
                    decoded = decode(data)
                except ValueError as error:
                    raise CorruptRecordError(name, record, offset, str(error)) from None
                yield decoded
                offset += HEADER_BYTES + length + FOOTER_BYTES
                record += 1
                continue
            detail = DATA_CRC
        raise CorruptRecordError(name, record, offset, detail)


def record_data(block: NDArray[np.uint8], name: str, record: int, offset: int) -> memoryview:
    """Check a record and return its data.

    Args:
        block: [n] uint8, the record from header to footer.
        name: name of the file in error messages.
        record: number of the record in error messages.
        offset: offset of the record's first byte in error messages.

    Raises:
        CorruptRecordError: if a CRC or the length does not match.
    """
    check_header(block[:HEADER_BYTES], len(block), name, record, offset)
    data = block.data[HEADER_BYTES:-FOOTER_BYTES]
    if frame_footer(crc32c(data)) != block[-FOOTER_BYTES:].tobytes():
        raise CorruptRecordError(name, record, offset, DATA_CRC)
    return data


def check_header(header: NDArray[np.uint8], size: int, name: str, record: int, offset: int) -> None:
    """Check the header of a record that has `size` bytes including its framing.

    Raises:
        CorruptRecordError: if the header does not fit.
    """
    found, expected = header.tobytes(), size - HEADER_BYTES - FOOTER_BYTES
    if found == frame_header(expected):
        return
    length = int.from_bytes(found[:8], "little")
    detail = LENGTH_CRC
    if frame_header(length) == found:
        detail = f"{length} bytes of data, expected {expected}"
    raise CorruptRecordError(name, record, offset, detail)
