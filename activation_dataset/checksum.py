"""CRC32C of buffers and streams, always by the C library of google-crc32c."""

from __future__ import annotations

import base64
from typing import Any, BinaryIO

import google_crc32c
import numpy as np

Buffer = Any
"""Any C-contiguous buffer: bytes, memoryview, bytearray or ndarray."""

if google_crc32c.implementation != "c":
    raise ImportError(
        "google-crc32c has no C extension here, only its pure Python fallback, which is about a "
        "thousand times slower. Install a binary wheel: "
        "pip install --force-reinstall --only-binary :all: google-crc32c"
    )

# Fits into a core's second-level cache, so that the checksum reads no memory twice.
_PIECE_BYTES = 1 << 19


def extend(crc: int, buffer: Buffer) -> int:
    """CRC32C of everything `crc` covers, followed by `buffer`. Copies nothing."""
    # The C function refuses memoryviews and bytearrays, but takes any ndarray.
    if not isinstance(buffer, bytes | np.ndarray):
        buffer = np.frombuffer(buffer, np.uint8)
    return int(google_crc32c.extend(crc, buffer))


def crc32c(*buffers: Buffer) -> int:
    """CRC32C of the buffers end to end."""
    crc = 0
    for buffer in buffers:
        crc = extend(crc, buffer)
    return crc


def crc32c_of_stream(stream: BinaryIO) -> tuple[int, int]:
    """CRC32C and number of the bytes from the stream's position to its end. Raises OSError."""
    piece = np.empty(_PIECE_BYTES, np.uint8)
    crc = size = 0
    while count := stream.readinto(piece.data):  # type: ignore[attr-defined]
        crc = extend(crc, piece[:count])
        size += count
    return crc, size


def to_text(crc: int) -> str:
    """Base64 of the four bytes, big-endian: the crc32c that Cloud Storage shows for an object."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode("ascii")
