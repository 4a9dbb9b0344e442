"""Attention, the MLP and projections in float32, for processors with AVX-512.

XLA's own products reach two fifths of what such a processor can do.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp

from qwen2.config import Qwen2Config
from qwen2.kernels.registration import register

KERNELS = {
    "qwen2_avx512_attention": "Qwen2Avx512Attention",
    "qwen2_avx512_mlp": "Qwen2Avx512Mlp",
    "qwen2_avx512_product": "Qwen2Avx512Product",
}
HEAD_DIMS = (64, 128)
PANEL = 64
"""Columns that a kernel takes at a time; of the MLP's gate and up half of them each."""


@cache
def available() -> bool:
    """Whether the kernels were built and this machine can run them; they are then registered."""
    return register("avx512", "Qwen2Avx512Available", KERNELS)


def fits(config: Qwen2Config, dtype: jnp.dtype, parts: int) -> bool:
    """Whether the kernels take a model of this shape, split over ``parts`` devices."""
    return (
        dtype == jnp.float32
        and config.head_dim in HEAD_DIMS
        and config.hidden_size % PANEL == 0
        and config.intermediate_size // parts % (PANEL // 2) == 0
        and available()
    )


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, positions: jax.Array
) -> jax.Array:
    """Causal attention within samples; the shapes are those of ``qwen2.attention``.

    The length of a row must be a multiple of 64.
    """
    out = jax.ShapeDtypeStruct(query.shape, query.dtype)
    return jax.ffi.ffi_call("qwen2_avx512_attention", out)(query, key, value, positions)


def mlp(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """``down(silu(gate(x)) * up(x))``: [..., H] to [..., H], all float32.

    Args:
      gate, up: [H, I], where H is a multiple of 64 and I of 32.
      down: [I, H].
    """
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.ffi.ffi_call("qwen2_avx512_mlp", out)(x, gate, up, down)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``x @ kernel``, [..., K] and [K, N] to [..., N], all float32; N is a multiple of 64."""
    out = jax.ShapeDtypeStruct((*x.shape[:-1], kernel.shape[-1]), x.dtype)
    return jax.ffi.ffi_call("qwen2_avx512_product", out)(x, kernel)
