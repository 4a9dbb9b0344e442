"""Quantization of vectors inside a jitted program; `storage_dtype` describes the format."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from activation_dataset.storage_dtype import LARGEST_ELEMENT, SCALE_BYTES, StorageDtype


def quantize(x: jax.Array, storage_dtype: StorageDtype) -> jax.Array:
    """Quantize vectors [..., H] to rows with 8 bits per element, [..., 4 + H] uint8 or int8.

    A vector with an infinity or NaN gets the scale NaN.
    """
    x = x.astype(jnp.float32)
    largest = jnp.abs(x).max(axis=-1, keepdims=True)
    # The sum of x * 0 is NaN if an element is not finite, which a maximum may miss. On CPUs, it is
    # faster than isfinite.
    scale = largest * (1 / LARGEST_ELEMENT[storage_dtype]) + (x * 0).sum(axis=-1, keepdims=True)
    scaled = x / jnp.where(scale > 0, scale, 1)
    if storage_dtype == "int8":
        elements = jnp.round(scaled).astype(jnp.int8)
    else:
        elements = jax.lax.bitcast_convert_type(scaled.astype(jnp.float8_e4m3fn), jnp.uint8)
    scale_bytes = jax.lax.bitcast_convert_type(scale[..., 0], elements.dtype)
    return jnp.concatenate([scale_bytes, elements], axis=-1)


def dequantize(rows: jax.Array) -> jax.Array:
    """Return the vectors of quantized rows, [..., H] float32; return other arrays unchanged."""
    if rows.dtype not in (jnp.uint8, jnp.int8):
        return rows
    scale = jax.lax.bitcast_convert_type(rows[..., :SCALE_BYTES], jnp.float32)
    elements = rows[..., SCALE_BYTES:]
    if elements.dtype == jnp.uint8:
        elements = jax.lax.bitcast_convert_type(elements, jnp.float8_e4m3fn)
    return elements.astype(jnp.float32) * scale[..., None]
