"""CRC32C of buffers and streams, computed by the C extension of google-crc32c."""

from __future__ import annotations

import base64
from typing import Any, BinaryIO

import google_crc32c
import numpy as np

Buffer = Any
"""Any C-contiguous buffer: bytes, memoryview, bytearray or ndarray."""

if google_crc32c.implementation != "c":
    raise ImportError(
        "google-crc32c has no C extension in this environment. Its Python fallback is about a "
        "thousand times slower. Install a binary wheel: "
        "pip install --force-reinstall --only-binary :all: google-crc32c"
    )

# A piece fits into a core's L2 cache, from which the checksum reads it.
_PIECE_BYTES = 1 << 19


def extend(crc: int, buffer: Buffer) -> int:
    """Return the CRC32C of the bytes that `crc` covers followed by `buffer`, without a copy."""
    # The C function rejects memoryviews and bytearrays, but accepts any ndarray.
    if not isinstance(buffer, bytes | np.ndarray):
        buffer = np.frombuffer(buffer, np.uint8)
    return int(google_crc32c.extend(crc, buffer))


def crc32c(*buffers: Buffer) -> int:
    """Return the CRC32C of the concatenated buffers."""
    crc = 0
    for buffer in buffers:
        crc = extend(crc, buffer)
    return crc


def crc32c_of_stream(stream: BinaryIO) -> tuple[int, int]:
    """Return the CRC32C and the number of bytes from the stream's position to its end.

    Raises:
        OSError: if the stream cannot be read.
    """
    piece = np.empty(_PIECE_BYTES, np.uint8)
    crc = size = 0
    while count := stream.readinto(piece.data):  # type: ignore[attr-defined]
        crc = extend(crc, piece[:count])
        size += count
    return crc, size


def to_text(crc: int) -> str:
    """Return a CRC32C as base64 of its big-endian bytes, as Cloud Storage shows it."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode("ascii")
