"""Products that accumulate in float32, and rounding to the model's dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def precision_of(x: jax.Array) -> jax.lax.Precision | None:
    """Return the precision with which every platform multiplies float32 arrays in float32."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Contract two arrays as `jnp.einsum` does; the result is float32."""
    return jnp.einsum(
        subscripts, a, b, precision=precision_of(a), preferred_element_type=jnp.float32
    )


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Contract the last axis of x with the first axis of a kernel; the result is float32.

    On CPUs, bfloat16 products with a float32 result are fast, and the operations that follow round
    only once.
    """
    return jnp.tensordot(
        x, kernel, 1, precision=precision_of(x), preferred_element_type=jnp.float32
    )


def add_update(x: jax.Array, update: jax.Array) -> jax.Array:
    """Add a float32 update to the residual stream x; the result has the dtype of x."""
    return round_to(x.astype(jnp.float32) + update, x.dtype)


def round_to(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Round float32 to the nearest value of `dtype`, ties to even."""
    if dtype != jnp.bfloat16:
        return x.astype(dtype)
    return jax.lax.platform_dependent(
        x, cpu=_to_bfloat16_by_bits, default=lambda x: x.astype(jnp.bfloat16)
    )


def _to_bfloat16_by_bits(x: jax.Array) -> jax.Array:
    """Round with integer operations, because XLA's conversion does not vectorize well on CPUs."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
