"""Qwen2 in Flax nnx, up to the residual stream after a layer: no final norm, no LM head.

Array shapes use: R rows, L slots of a row, H hidden, K key-value heads, G query heads for each,
D head dimensions, I intermediate, S samples that a row may hold. Semantics follow
``transformers/models/qwen2/modeling_qwen2.py``. In bfloat16, what goes into a matrix product and
the residual stream itself are rounded; what lies between is float32, so that rounding happens
less often than there.

The layers run inside ``jax.shard_map``: rows are split over the mesh's data axis, heads and the
MLP's intermediate dimension over its model axis (Megatron-LM, https://arxiv.org/abs/1909.08053).
What a module sees is its device's part, so shapes come from the arrays, not from the config.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from qwen2.attention import AttentionForm, attention_of_slots, causal_attention
from qwen2.config import Qwen2Config
from qwen2.kernels import amx, avx512
from qwen2.rounding import round_to
from qwen2.sites import HookPoint

DATA_AXIS, MODEL_AXIS = "data", "model"

MLP_CHUNK_ON_CPU = 512
"""Token slots that go through the MLP at a time on a CPU: what keeps its intermediate in cache."""


def project(
    x: jax.Array,
    kernel: jax.Array,
    reduce_over: str | None = None,
    form: AttentionForm = "reference",
) -> jax.Array:
    """``x @ kernel`` over the last axis of x and the first of the kernel, in float32.

    The float32 result is what XLA runs fast for bfloat16 on CPUs, and what follows is computed on
    it before it is rounded once.

    Args:
      reduce_over: the mesh axis over which the contracted dimension is split, if it is.
    """
    if form == "avx512":
        flat = avx512.product(x, kernel.reshape(kernel.shape[0], -1))
        out = flat.reshape(*x.shape[:-1], *kernel.shape[1:])
    else:
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


def rotary_embedding(positions: jax.Array, config: Qwen2Config) -> tuple[jax.Array, jax.Array]:
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

    def __init__(self, config: Qwen2Config, dtype: jnp.dtype) -> None:
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
        self, x: jax.Array, rotary: tuple[jax.Array, jax.Array], form: AttentionForm
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[R, L, K, G, D], [R, L, K, D], [R, L, K, D]"""
        qkv = project(x, self.qkv_kernel[...], form=form) + self.qkv_bias[...].astype(jnp.float32)
        rotated = round_to(rotate(qkv[..., :-1, :], rotary), x.dtype)
        return rotated[..., :-1, :], rotated[..., -1, :], round_to(qkv[..., -1, :], x.dtype)

    def output(self, attended: jax.Array, form: AttentionForm) -> jax.Array:
        """[R, L, K, G, D] to [R, L, H] float32"""
        kernel = self.out_kernel[...]
        width, hidden = kernel.size // kernel.shape[-1], kernel.shape[-1]
        flat = attended.reshape(*attended.shape[:2], width)
        return project(flat, kernel.reshape(width, hidden), MODEL_AXIS, form)


class MLP(nnx.Module):
    def __init__(self, config: Qwen2Config, dtype: jnp.dtype) -> None:
        hidden, intermediate = config.hidden_size, config.intermediate_size
        self.gate_kernel = nnx.Param(jnp.zeros((hidden, intermediate), dtype))
        self.up_kernel = nnx.Param(jnp.zeros((hidden, intermediate), dtype))
        self.down_kernel = nnx.Param(jnp.zeros((intermediate, hidden), dtype))

    def __call__(self, x: jax.Array, form: AttentionForm) -> jax.Array:
        """[..., H] to [..., H] float32"""
        if form in ("amx", "avx512"):
            mlp = amx.mlp if form == "amx" else avx512.mlp
            kernels = (self.gate_kernel[...], self.up_kernel[...], self.down_kernel[...])
            return sum_over(mlp(x, *kernels), MODEL_AXIS)
        gated = jax.nn.silu(project(x, self.gate_kernel[...])) * project(x, self.up_kernel[...])
        return project(round_to(gated, x.dtype), self.down_kernel[...], reduce_over=MODEL_AXIS)


HookValues = dict[HookPoint, jax.Array]
"""What a layer has at each of its hook points; what no program gives out is not computed for it."""


class DecoderLayer(nnx.Module):
    def __init__(self, config: Qwen2Config, dtype: jnp.dtype) -> None:
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
    ) -> HookValues:
        """At each hook point [R, L, H]: the residual stream in its dtype, updates in float32."""
        q, k, v = self.attention.queries_keys_values(self.attention_norm(x), rotary, form)
        attended = causal_attention(q, k, v, segment_ids, positions, form)
        return self._hook_values(x, self.attention.output(attended, form), form)

    def at_slots(
        self,
        x: jax.Array,
        rotary: tuple[jax.Array, jax.Array],
        segment_ids: jax.Array,
        slots: jax.Array,
        form: AttentionForm,
    ) -> HookValues:
        """The same at slots [R, S] only, [R, S, H].

        Keys and values are those of the whole row; everything else is computed at the slots alone.
        """
        q, k, v = self.attention.queries_keys_values(self.attention_norm(x), rotary, form)
        attended = attention_of_slots(gather_slots(q, slots), slots, k, v, segment_ids)
        attn_out = self.attention.output(attended, "reference")
        return self._hook_values(gather_slots(x, slots), attn_out, "reference")

    def _hook_values(self, x: jax.Array, attn_out: jax.Array, form: AttentionForm) -> HookValues:
        resid_mid = _add(x, attn_out)
        mlp_out, resid_post = self._with_mlp(resid_mid, form)
        return {
            "resid_pre": x,
            "attn_out": attn_out,
            "resid_mid": resid_mid,
            "mlp_out": mlp_out,
            "resid_post": resid_post,
        }

    def _with_mlp(self, x: jax.Array, form: AttentionForm) -> tuple[jax.Array, jax.Array]:
        """What the MLP adds, in float32, and the residual stream with it."""

        def block(part: jax.Array) -> tuple[jax.Array, jax.Array]:
            update = self.mlp(self.mlp_norm(part), form)
            return update, _add(part, update)

        rows, length, hidden = x.shape
        slots = rows * length
        if form != "blocked" or slots <= MLP_CHUNK_ON_CPU or slots % MLP_CHUNK_ON_CPU:
            return block(x)
        update, after = jax.lax.map(block, x.reshape(-1, MLP_CHUNK_ON_CPU, hidden))
        return update.reshape(x.shape), after.reshape(x.shape)


def _add(x: jax.Array, update: jax.Array) -> jax.Array:
    """The residual stream plus a float32 update, in its own dtype."""
    return round_to(x.astype(jnp.float32) + update, x.dtype)


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

    def __init__(self, config: Qwen2Config, num_layers: int, dtype: jnp.dtype) -> None:
        self.embedding = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))
        self.layers = nnx.List([DecoderLayer(config, dtype) for _ in range(num_layers)])
