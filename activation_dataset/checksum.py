"""CRC32C of buffers, always by the C library, never by the pure Python fallback."""

from __future__ import annotations

import base64
import ctypes
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from activation_dataset import native

Buffer = Any
"""Any C-contiguous buffer: bytes, memoryview, bytearray or ndarray."""

if google_crc32c.implementation != "c":
    raise ImportError(
        "google-crc32c has no C extension here, only its pure Python fallback, which is about a "
        "thousand times slower. Install a binary wheel: "
        "pip install --force-reinstall --only-binary :all: google-crc32c"
    )

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bit-reversed

# From this size on it pays to let other threads run.
_LARGE_BYTES = 1 << 15


def _c_function() -> Callable[[int, int, int], int] | None:
    """What google-crc32c calls: the same, but without the interpreter's lock.

    None where its wheel does not show it.
    """
    try:
        function = ctypes.CDLL(import_module("google_crc32c._crc32c").__file__).crc32c_extend
    except (ImportError, OSError, AttributeError):
        return None
    function.restype = ctypes.c_uint32
    function.argtypes = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t]
    return function


c_extend = _c_function()
"""(crc, address, size) to the CRC32C of what `crc` covers and those bytes; for C code as well."""


def extend(crc: int, buffer: Buffer) -> int:
    """CRC32C of everything `crc` covers, followed by `buffer`. Copies nothing."""
    # The C function refuses memoryviews and bytearrays, but takes any ndarray.
    if not isinstance(buffer, bytes | np.ndarray):
        buffer = np.frombuffer(buffer, np.uint8)
    if c_extend and isinstance(buffer, np.ndarray) and buffer.nbytes >= _LARGE_BYTES:
        if not buffer.flags.c_contiguous:
            raise ValueError("the buffer is not C-contiguous")
        return c_extend(crc, native.address(buffer), buffer.nbytes)
    return int(google_crc32c.extend(crc, buffer))


def crc32c(*buffers: Buffer) -> int:
    """CRC32C of the buffers, as if they were one."""
    crc = 0
    for buffer in buffers:
        crc = extend(crc, buffer)
    return crc


def crc32c_of_spans(
    block: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[n] int64: CRC32C of block[start:end], [bytes] and contiguous, for each of n spans."""
    if native.library and c_extend:
        crcs = np.empty(len(starts), np.int64)
        starts, ends = np.ascontiguousarray(starts), np.ascontiguousarray(ends)
        native.library.CrcsOfSpans(
            c_extend,
            native.address(block),
            native.address(starts),
            native.address(ends),
            len(crcs),
            native.address(crcs),
        )
        return crcs
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    return np.array([google_crc32c.extend(0, block[start:end]) for start, end in spans], np.int64)


def combine(first: int, second: int, second_length: int) -> int:
    """CRC32C of two byte strings, from the CRC32C of each and the length of the second.

    Costs some tens of microseconds, whatever the length; fewer for a length seen lately.
    """
    return _multiply(first, _power_of_x(8 * second_length)) ^ second


def to_text(crc: int) -> str:
    """Base64 of the four bytes, big-endian: what Cloud Storage shows as an object's crc32c."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode("ascii")


def _multiply(a: int, b: int) -> int:
    """Product of two polynomials over GF(2), modulo the CRC polynomial. Bit 31 is x^0."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


def _squares() -> list[int]:
    """x^(2^k) modulo the CRC polynomial, for k = 0..63."""
    powers = [1 << 30]
    while len(powers) < 64:
        powers.append(_multiply(powers[-1], powers[-1]))
    return powers


_SQUARES = _squares()


@lru_cache(maxsize=1024)
def _power_of_x(exponent: int) -> int:
    """x^exponent modulo the CRC polynomial, for exponents below 2^64."""
    result = 1 << 31
    for bit in range(exponent.bit_length()):
        if exponent >> bit & 1:
            result = _multiply(result, _SQUARES[bit])
    return result
