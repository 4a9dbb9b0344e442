"""The layers of the model on the matrix registers (AMX) of Intel processors, for bfloat16.

XLA's own products reach a third of what the registers can do, it makes passes over memory between
them, and it has no fused attention on CPUs. Here a layer is four calls. Kernels of products are
packed once, when a model is loaded: [columns / 32, depth / 32, 1024], as ``tiles.h`` describes.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from qwen.config import ModelConfig
from qwen.ops.amx.registration import register

KERNELS = {
    "qwen_amx_attention": "QwenAmxAttention",
    "qwen_amx_mlp": "QwenAmxMlp",
    "qwen_amx_output": "QwenAmxOutput",
    "qwen_amx_pack": "QwenAmxPack",
    "qwen_amx_qkv": "QwenAmxQkv",
}
HEAD_DIMS = (64, 128)
PANEL = 32
"""Rows and columns that a kernel takes at a time."""


@cache
def available() -> bool:
    """Whether the kernels were built and this machine can run them; they are then registered."""
    return register("QwenAmxAvailable", KERNELS)


def fits(config: ModelConfig, dtype: jnp.dtype, parts: int) -> bool:
    """Whether the kernels take a model of this shape, split over ``parts`` devices."""
    sizes = (config.hidden_size, config.intermediate_size // parts)
    return (
        dtype == jnp.bfloat16
        and config.head_dim in HEAD_DIMS
        and all(size % PANEL == 0 for size in sizes)
        and available()
    )


def pack(kernel: jax.Array) -> jax.Array:
    """[depth, columns] bfloat16 to [columns / 32, depth / 32, 1024]; both are multiples of 32."""
    depth, columns = kernel.shape
    shape = (columns // PANEL, depth // PANEL, PANEL * PANEL)
    return jax.ffi.ffi_call("qwen_amx_pack", jax.ShapeDtypeStruct(shape, kernel.dtype))(kernel)


def queries_keys_values(
    x: jax.Array,
    scale: jax.Array,
    epsilon: float,
    kernel: jax.Array,
    bias: jax.Array,
    rotary: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """RMSNorm, product, bias and RoPE: [R, L, K, G, D], [R, L, K, D], [R, L, K, D] bfloat16.

    Args:
      x: [R, L, H] bfloat16, the residual stream.
      scale, epsilon: of the norm; [H] bfloat16.
      kernel: packed [H, K * (G + 2) * D].
      bias: [K, G + 2, D] bfloat16.
      rotary: cosines and sines, [R, L, D / 2] float32.
    """
    heads, roles, size = bias.shape
    shapes = ((heads, roles - 2, size), (heads, size), (heads, size))
    out = tuple(jax.ShapeDtypeStruct((*x.shape[:2], *shape), x.dtype) for shape in shapes)
    call = jax.ffi.ffi_call("qwen_amx_qkv", out)
    query, key, value = call(x, scale, kernel, bias, *rotary, epsilon=np.float32(epsilon))
    return query, key, value


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, positions: jax.Array
) -> jax.Array:
    """Causal attention within samples; the shapes are those of ``qwen.attention``.

    The length of a row must be a multiple of 64.
    """
    out = jax.ShapeDtypeStruct(query.shape, query.dtype)
    return jax.ffi.ffi_call("qwen_amx_attention", out)(query, key, value, positions)


def output(attended: jax.Array, kernel: jax.Array, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The output projection: [R, L, H] float32, or in bfloat16 the residual stream with it.

    Args:
      attended: [R, L, K, G, D] bfloat16.
      kernel: packed [K * G * D, H].
      x: [R, L, H] bfloat16, the residual stream.
    """
    out = jax.ShapeDtypeStruct(x.shape, dtype)
    return jax.ffi.ffi_call("qwen_amx_output", out)(attended, kernel, x)


def mlp(
    x: jax.Array,
    scale: jax.Array,
    epsilon: float,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    dtype: jnp.dtype,
) -> jax.Array:
    """``down(silu(gate(n)) * up(n))`` of the normalised rows n: [..., H] float32, or in bfloat16
    the residual stream with it.

    The product of silu and up is rounded to bfloat16.

    Args:
      x: [..., H] bfloat16, the residual stream.
      scale, epsilon: of the norm; [H] bfloat16.
      gate, up: packed [H, I].
      down: packed [I, H].
    """
    out = jax.ShapeDtypeStruct(x.shape, dtype)
    call = jax.ffi.ffi_call("qwen_amx_mlp", out)
    return call(x, scale, gate, up, down, epsilon=np.float32(epsilon))
