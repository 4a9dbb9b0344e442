"""Attention and the MLP on the matrix registers (AMX) of Intel processors, for bfloat16.

XLA's own products reach half of what the registers can do, and it has no fused attention on CPUs.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec

import jax
import jax.numpy as jnp

from qwen2.config import Qwen2Config

LIBRARY = "qwen2.kernels.amx.library"
KERNELS = {"qwen2_amx_attention": "Qwen2AmxAttention", "qwen2_amx_mlp": "Qwen2AmxMlp"}
HEAD_DIMS = (64, 128)
PANEL = 32
"""Rows and columns that a kernel takes at a time."""


@cache
def available() -> bool:
    """Whether the kernels were built and this machine can run them; they are then registered."""
    spec = find_spec(LIBRARY)
    if spec is None or spec.origin is None:
        return False
    library = ctypes.CDLL(spec.origin)
    if not library.Qwen2AmxAvailable():
        return False
    for name, symbol in KERNELS.items():
        handler = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return True


def fits(config: Qwen2Config, dtype: jnp.dtype, parts: int) -> bool:
    """Whether the kernels take a model of this shape, split over ``parts`` devices."""
    sizes = (config.hidden_size, config.intermediate_size // parts)
    return (
        dtype == jnp.bfloat16
        and config.head_dim in HEAD_DIMS
        and all(size % PANEL == 0 for size in sizes)
        and available()
    )


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, positions: jax.Array
) -> jax.Array:
    """Causal attention within samples; the shapes are those of ``qwen2.attention``.

    The length of a row must be a multiple of 64.
    """
    out = jax.ShapeDtypeStruct(query.shape, query.dtype)
    return jax.ffi.ffi_call("qwen2_amx_attention", out)(query, key, value, positions)


def mlp(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """``down(silu(gate(x)) * up(x))``: [..., H] bfloat16 to [..., H] float32.

    The product of silu and up is rounded to bfloat16. There must be a multiple of 32 rows.

    Args:
      gate, up: [H, I] bfloat16.
      down: [I, H] bfloat16.
    """
    out = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    return jax.ffi.ffi_call("qwen2_amx_mlp", out)(x, gate, up, down)
