"""Qwen2 in Flax nnx, up to the residual stream after a layer: no final norm, no LM head.

Array shapes use: R rows, L slots of a row, H hidden, K key-value heads, G query heads for each,
D head dimensions, I intermediate, S samples that a row may hold. Semantics follow
``transformers/models/qwen/modeling_qwen2.py``. In bfloat16, what goes into a matrix product and
the residual stream itself are rounded; what lies between is float32, so that rounding happens
less often than there.

The layers run inside ``jax.shard_map``: rows are split over the mesh's data axis, heads and the
MLP's intermediate dimension over its model axis (Megatron-LM, https://arxiv.org/abs/1909.08053).
What a module sees is its device's part, so shapes come from the arrays, not from the config.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from activation_dataset.sites import HookPoint
from qwen.attention import AttentionForm, attention_of_slots, causal_attention
from qwen.config import ModelConfig
from qwen.ops import amx
from qwen.rounding import round_to

DATA_AXIS, MODEL_AXIS = "data", "model"

MLP_CHUNK_ON_CPU = 512
"""Token slots that go through the MLP at a time on a CPU: what keeps its intermediate in cache."""


def project(
    x: jax.Array,
    kernel: jax.Array,
    reduce_over: str | None = None,
) -> jax.Array:
    """``x @ kernel`` over the last axis of x and the first of the kernel, in float32.

    The float32 result is what XLA runs fast for bfloat16 on CPUs, and what follows is computed on
    it before it is rounded once.

    Args:
      reduce_over: the mesh axis over which the contracted dimension is split, if it is.
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    out = jnp.tensordot(x, kernel, 1, precision=precision, preferred_element_type=jnp.float32)
    return out if reduce_over is None else sum_over(out, reduce_over)


def sum_over(x: jax.Array, axis: str) -> jax.Array:
    """The sum over the devices of a mesh axis; of one device's part, XLA would make a copy."""
    return x if jax.lax.axis_size(axis) == 1 else jax.lax.psum(x, axis)


class RMSNorm(nnx.Module):
    def __init__(self, size: int, epsilon: float, dtype: jnp.dtype) -> None:
        self.scale = nnx.Param(jnp.ones(size, dtype))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return round_to(x32 * inverse * self.scale[...].astype(jnp.float32), x.dtype)


def rotary_embedding(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, [..., D / 2] float32 each, for integer positions [...]."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    angles = positions[..., None].astype(jnp.float32) / config.rope_theta**exponents
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies RoPE to x [R, L, heads..., D] float32 with cosines and sines [R, L, D / 2]."""
    between = tuple(range(2, x.ndim - 1))
    cosines, sines = (jnp.expand_dims(a, between) for a in rotary)
    first, second = jnp.split(x, 2, axis=-1)
    rotated = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(rotated, axis=-1)


class Attention(nnx.Module):
    """Grouped-query attention; one kernel holds, per key-value head, [G queries, key, value]."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype) -> None:
        heads, groups, head_dim = (
            config.num_key_value_heads,
            config.query_groups,
            config.head_dim,
        )
        self.qkv_kernel = nnx.Param(
            jnp.zeros((config.hidden_size, heads, groups + 2, head_dim), dtype)
        )
        self.qkv_bias = nnx.Param(jnp.zeros((heads, groups + 2, head_dim), dtype))
        self.out_kernel = nnx.Param(jnp.zeros((heads, groups, head_dim, config.hidden_size), dtype))

    def queries_keys_values(
        self, x: jax.Array, norm: RMSNorm, rotary: tuple[jax.Array, jax.Array], form: AttentionForm
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of the normalised x: [R, L, K, G, D], [R, L, K, D], [R, L, K, D]"""
        if form == "amx":
            parameters = (self.qkv_kernel[...], self.qkv_bias[...])
            return amx.queries_keys_values(x, norm.scale[...], norm.epsilon, *parameters, rotary)
        qkv = project(norm(x), self.qkv_kernel[...])
        qkv += self.qkv_bias[...].astype(jnp.float32)
        rotated = round_to(rotate(qkv[..., :-1, :], rotary), x.dtype)
        return rotated[..., :-1, :], rotated[..., -1, :], round_to(qkv[..., -1, :], x.dtype)

    def output(
        self, x: jax.Array, attended: jax.Array, form: AttentionForm, update: bool
    ) -> Updated:
        """What attention, [R, L, K, G, D], adds to x."""
        kernel = self.out_kernel[...]
        if form == "amx":
            return _by_kernel(x, lambda dtype: amx.output(attended, kernel, x, dtype), update)
        width, hidden = kernel.size // kernel.shape[-1], kernel.shape[-1]
        flat = attended.reshape(*attended.shape[:2], width)
        out = project(flat, kernel.reshape(width, hidden), MODEL_AXIS)
        return out, _add(x, out)


class MLP(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype) -> None:
        hidden, intermediate = config.hidden_size, config.intermediate_size
        self.gate_kernel = nnx.Param(jnp.zeros((hidden, intermediate), dtype))
        self.up_kernel = nnx.Param(jnp.zeros((hidden, intermediate), dtype))
        self.down_kernel = nnx.Param(jnp.zeros((intermediate, hidden), dtype))

    def __call__(self, x: jax.Array, norm: RMSNorm, form: AttentionForm, update: bool) -> Updated:
        """What the MLP of the normalised x, [R, L, H], adds to it."""
        kernels = (self.gate_kernel[...], self.up_kernel[...], self.down_kernel[...])
        if form == "amx":
            call = partial(amx.mlp, x, norm.scale[...], norm.epsilon, *kernels)
            return _by_kernel(x, lambda dtype: call(dtype=dtype), update)
        rows, length, hidden = x.shape
        slots = rows * length
        if form != "blocked" or slots <= MLP_CHUNK_ON_CPU or slots % MLP_CHUNK_ON_CPU:
            return self._of_slots(x, norm)
        out, after = jax.lax.map(
            lambda part: self._of_slots(part, norm), x.reshape(-1, MLP_CHUNK_ON_CPU, hidden)
        )
        return out.reshape(x.shape), after.reshape(x.shape)

    def _of_slots(self, x: jax.Array, norm: RMSNorm) -> tuple[jax.Array, jax.Array]:
        normed = norm(x)
        gate, up = (project(normed, k[...]) for k in (self.gate_kernel, self.up_kernel))
        gated = round_to(jax.nn.silu(gate) * up, x.dtype)
        out = project(gated, self.down_kernel[...], reduce_over=MODEL_AXIS)
        return out, _add(x, out)


Updated = tuple[jax.Array | None, jax.Array]
"""An update of the residual stream in float32, None if it was not asked for and was never apart,
and the stream with it, [..., H] each."""


def _add(x: jax.Array, update: jax.Array) -> jax.Array:
    """The residual stream plus a float32 update, in its own dtype."""
    return round_to(x.astype(jnp.float32) + update, x.dtype)


def _by_kernel(x: jax.Array, kernel: Callable[[jnp.dtype], jax.Array], update: bool) -> Updated:
    """The update by a kernel that gives it out in float32, or in x's dtype added to x."""
    if not update and jax.lax.axis_size(MODEL_AXIS) == 1:
        return None, kernel(x.dtype)
    out = sum_over(kernel(jnp.dtype(jnp.float32)), MODEL_AXIS)
    return out, _add(x, out)


HookValues = dict[HookPoint, jax.Array]
"""What a layer has at each of its hook points; what no program gives out is not computed for it."""


class DecoderLayer(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype) -> None:
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.attention = Attention(config, dtype)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = MLP(config, dtype)

    def __call__(
        self,
        x: jax.Array,
        rotary: tuple[jax.Array, jax.Array],
        segment_ids: jax.Array,
        positions: jax.Array,
        form: AttentionForm,
        hook_points: Collection[HookPoint],
    ) -> HookValues:
        """At these hook points, and after the layer, [R, L, H]: the residual stream in its dtype,
        updates in float32. There may be more than asked for."""
        q, k, v = self.attention.queries_keys_values(x, self.attention_norm, rotary, form)
        attended = causal_attention(q, k, v, segment_ids, positions, form)
        return self._hook_values(x, attended, form, hook_points)

    def at_slots(
        self,
        x: jax.Array,
        rotary: tuple[jax.Array, jax.Array],
        segment_ids: jax.Array,
        slots: jax.Array,
        form: AttentionForm,
        hook_points: Collection[HookPoint],
    ) -> HookValues:
        """The same at slots [R, S] only, [R, S, H].

        Keys and values are those of the whole row; what follows is computed at the slots alone.
        """
        q, k, v = self.attention.queries_keys_values(x, self.attention_norm, rotary, form)
        attended = attention_of_slots(gather_slots(q, slots), slots, k, v, segment_ids)
        return self._hook_values(gather_slots(x, slots), attended, form, hook_points)

    def _hook_values(
        self,
        x: jax.Array,
        attended: jax.Array,
        form: AttentionForm,
        hook_points: Collection[HookPoint],
    ) -> HookValues:
        attn_out, resid_mid = self.attention.output(x, attended, form, "attn_out" in hook_points)
        mlp_out, resid_post = self.mlp(resid_mid, self.mlp_norm, form, "mlp_out" in hook_points)
        values: dict[HookPoint, jax.Array | None] = {
            "resid_pre": x,
            "attn_out": attn_out,
            "resid_mid": resid_mid,
            "mlp_out": mlp_out,
            "resid_post": resid_post,
        }
        return {point: value for point, value in values.items() if value is not None}


def gather_slots(x: jax.Array, slots: jax.Array) -> jax.Array:
    """x [R, L, ...] at slots [R, S], [R, S, ...]."""
    return jax.vmap(lambda row, at: row[at])(x, slots)


def mean_of_segments(x: jax.Array, segment_ids: jax.Array, segments: int) -> jax.Array:
    """Mean over each segment's tokens, in float32: [R, L, H] to [R, S, H]; 0 for unused ones."""
    members = segment_ids[:, None, :] == jnp.arange(1, segments + 1)[None, :, None]
    totals = jnp.einsum(
        "rsl,rlh->rsh",
        members.astype(x.dtype),
        x,
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    return totals / jnp.maximum(members.sum(-1), 1)[..., None]


class Qwen2(nnx.Module):
    """The decoder's embedding and layers, up to the last one that is needed."""

    def __init__(self, config: ModelConfig, num_layers: int, dtype: jnp.dtype) -> None:
        self.embedding = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))
        self.layers = nnx.List([DecoderLayer(config, dtype) for _ in range(num_layers)])
