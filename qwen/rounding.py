"""Rounding float32 to the model's dtype, in the form that each platform runs fast."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def round_to(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Float32 to ``dtype``, to the nearest, ties to even."""
    if dtype != jnp.bfloat16:
        return x.astype(dtype)
    return jax.lax.platform_dependent(x, cpu=_to_bfloat16_by_bits, default=_to_bfloat16)


def _to_bfloat16(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16)


def _to_bfloat16_by_bits(x: jax.Array) -> jax.Array:
    """XLA's own conversion does not vectorise well on CPUs: exp and a cast took twice as long."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
