"""Operations on the matrix registers (AMX) of Intel CPUs, in bfloat16.

XLA's products reach a third of the registers' throughput, with passes over memory between the
products, and XLA has no fused attention on CPUs. These operations compute a layer with four calls
of C++ kernels through JAX's foreign function interface
(https://docs.jax.dev/en/latest/ffi.html). Loading a model tiles the kernels of products as
[columns / 32, depth / 32, 1024], which `tiles.h` describes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np

from qwen.config import ModelConfig
from qwen.layers.attention import Attention, QueriesKeysValues
from qwen.layers.delta import GatedDeltaNet
from qwen.layers.mlp import MLP
from qwen.layers.norm import RMSNorm
from qwen.layers.precision import add_update
from qwen.layers.rope import Rotary
from qwen.load_once import load_once
from qwen.mesh import MODEL_AXIS, sum_over
from qwen.ops.base import Ops, Updated

SYMBOLS = {
    "qwen_amx_attention": "QwenAmxAttention",
    "qwen_amx_mlp": "QwenAmxMlp",
    "qwen_amx_output": "QwenAmxOutput",
    "qwen_amx_qkv": "QwenAmxQkv",
}
"""Symbols in the library, by name in JAX."""

HEAD_DIMS = (64, 128)
PANEL = 32
"""Number of rows and columns that a kernel processes at a time."""


@load_once
def register() -> ctypes.CDLL | None:
    """Register the kernels with JAX; return their library, or None if it was not built."""
    spec = find_spec("qwen.ops.amx.library")
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    for name, symbol in SYMBOLS.items():
        handler = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return library


def available() -> bool:
    """Return True if the kernels were built and this machine can run them."""
    library = register()
    return library is not None and bool(library.QwenAmxAvailable())


def fits(config: ModelConfig, dtype: jnp.dtype, parts: int) -> bool:
    """Return True if the kernels support a model that is split over `parts` devices."""
    sizes = (config.hidden_size, config.intermediate_size // parts)
    plain = replace(config, layer_types=(), experts=None, delta=None, rotary_dim=0)
    return (
        dtype == jnp.bfloat16
        and config == plain
        and config.attention_bias
        and not (config.qk_norm or config.output_gate or config.zero_centered_norms)
        and config.head_dim in HEAD_DIMS
        and all(size % PANEL == 0 for size in sizes)
        and available()
    )


class AmxOps(Ops):
    """Operations with the AMX kernels."""

    name = "amx"
    tiles_kernels = True

    def tile_kernel(self, kernel: jax.Array) -> jax.Array:
        depth, columns = (size // PANEL for size in kernel.shape)
        # Each 32 rows x 32 columns become 2 tiles of 16 row pairs x 16 columns x 2.
        tiles = kernel.reshape(depth, 16, 2, columns, 2, 16).transpose(3, 0, 4, 1, 5, 2)
        return tiles.reshape(columns, depth, PANEL * PANEL)

    def queries_keys_values(
        self, x: jax.Array, norm: RMSNorm, attention: Attention, rotary: Rotary
    ) -> QueriesKeysValues:
        assert attention.qkv_bias is not None  # Guaranteed by `fits`.
        bias = attention.qkv_bias[...]
        heads, roles, size = bias.shape
        shapes = ((heads, roles - 2, size), (heads, size), (heads, size))
        call = jax.ffi.ffi_call(
            "qwen_amx_qkv",
            tuple(jax.ShapeDtypeStruct((*x.shape[:2], *shape), x.dtype) for shape in shapes),
        )
        query, key, value = call(
            x,
            norm.scale[...],
            attention.qkv_kernel[...],
            bias,
            *rotary,
            epsilon=np.float32(norm.epsilon),
        )
        return query, key, value

    def attend(
        self,
        qkv: QueriesKeysValues,
        segment_ids: jax.Array,
        positions: jax.Array,
        window: int | None,
    ) -> jax.Array:
        """Compute attention with a fused kernel; the length must be a multiple of 64."""
        assert window is None  # Guaranteed by `fits`.
        out = jax.ShapeDtypeStruct(qkv[0].shape, qkv[0].dtype)
        return jax.ffi.ffi_call("qwen_amx_attention", out)(*qkv, positions)

    def add_heads(
        self, x: jax.Array, heads: jax.Array, mixer: Attention | GatedDeltaNet, keep_update: bool
    ) -> Updated:
        def project(dtype: jnp.dtype) -> jax.Array:
            call = jax.ffi.ffi_call("qwen_amx_output", jax.ShapeDtypeStruct(x.shape, dtype))
            return call(heads, mixer.out_kernel[...], x)

        return _updated(x, project, keep_update)

    def add_mlp(self, x: jax.Array, norm: RMSNorm, mlp: MLP, keep_update: bool) -> Updated:
        def compute(dtype: jnp.dtype) -> jax.Array:
            call = jax.ffi.ffi_call("qwen_amx_mlp", jax.ShapeDtypeStruct(x.shape, dtype))
            kernels = (mlp.gate_kernel[...], mlp.up_kernel[...], mlp.down_kernel[...])
            return call(x, norm.scale[...], *kernels, epsilon=np.float32(norm.epsilon))

        return _updated(x, compute, keep_update)


def _updated(x: jax.Array, call: Callable[[jnp.dtype], jax.Array], keep_update: bool) -> Updated:
    """Call a kernel for the update in float32, or for x plus the update in the dtype of x."""
    if not keep_update and jax.lax.axis_size(MODEL_AXIS) == 1:
        return None, call(x.dtype)
    update = sum_over(call(jnp.dtype(jnp.float32)), MODEL_AXIS, x.dtype)
    return update, add_update(x, update)
