"""Dtypes of stored vectors, and their conversion to float32.

float32 and bfloat16 vectors are stored as their elements. A vector with 8-bit elements is stored as
a row of bytes: one scale, a little-endian float32, and then the elements. The value is the element
times the scale.

    float8_e4m3   scale = largest magnitude / 448; elements are OCP E4M3 (ml_dtypes.float8_e4m3fn)
    int8          scale = largest magnitude / 127; elements are integers in -127..127

The scale of a non-finite vector is NaN.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

ComputeDtype = Literal["float32", "bfloat16"]
StorageDtype = Literal["float32", "bfloat16", "float8_e4m3", "int8"]
COMPUTE_DTYPES: tuple[ComputeDtype, ...] = get_args(ComputeDtype)
STORAGE_DTYPES: tuple[StorageDtype, ...] = get_args(StorageDtype)

SCALE_BYTES = 4

LARGEST_ELEMENT = {"float8_e4m3": 448.0, "int8": 127.0}
"""Element that represents the largest magnitude of a vector, for each dtype with scales."""

_NUMPY: dict[StorageDtype, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
    "float8_e4m3": np.dtype(np.uint8),
    "int8": np.dtype(np.int8),
}


def numpy_dtype(storage_dtype: StorageDtype) -> np.dtype[Any]:
    """Return the numpy dtype of stored rows. Each storage dtype has a different one.

    Returns:
        float32, uint16 for the bits of bfloat16, uint8 for rows of float8_e4m3, or int8 for rows of
        int8.

    Raises:
        ValueError: if the storage dtype is unknown.
    """
    if storage_dtype not in _NUMPY:
        raise ValueError(
            f"storage dtype {storage_dtype!r} is not one of {', '.join(STORAGE_DTYPES)}"
        )
    return _NUMPY[storage_dtype]


def row_elements(storage_dtype: StorageDtype, hidden: int) -> int:
    """Return the number of elements of `numpy_dtype` in a stored row of `hidden` values."""
    return hidden + (SCALE_BYTES if storage_dtype in LARGEST_ELEMENT else 0)


def to_float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Convert stored rows [..., row elements] to vectors [..., hidden] float32, without loss."""
    if stored.dtype == np.float32:
        return stored.astype(np.float32, copy=False)
    if stored.dtype == np.uint16:
        widened = stored.astype(np.uint32)
        widened <<= 16
        return widened.view(np.float32)
    if stored.dtype not in (np.uint8, np.int8):
        raise TypeError(f"stored rows are {stored.dtype}, expected one of {[*_NUMPY.values()]}")
    scales = np.ascontiguousarray(stored[..., :SCALE_BYTES]).view("<f4")
    elements = stored[..., SCALE_BYTES:]
    is_int8 = stored.dtype == np.int8
    values: NDArray[np.float32]
    values = elements.astype(np.float32) if is_int8 else _float8_values()[elements]
    values *= scales
    return values


@cache
def _float8_values() -> NDArray[np.float32]:
    """Return the value of each float8_e4m3 byte, [256] float32."""
    codes = np.arange(256)
    exponents, fractions = codes >> 3 & 15, codes & 7
    normal = (1 + fractions / 8) * 2.0 ** (exponents - 7)
    values = np.where(exponents > 0, normal, fractions / 8 * 2.0**-6)
    values[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -values, values).astype(np.float32)
