"""Grouped-query attention: parameters, projections, and attention of selected slots."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from qwen.config import ModelConfig
from qwen.layers.norm import RMSNorm
from qwen.layers.precision import product, project, round_to
from qwen.layers.rope import Rotary, rotate
from qwen.mesh import MODEL_AXIS, sum_over

MASKED = -1e30
"""Score of a masked pair. It is finite, so the softmax of a fully masked row is not NaN."""

QueriesKeysValues = tuple[jax.Array, jax.Array, jax.Array]
"""Queries [R, L, K, G, D], keys and values [R, L, K, D], in the model's dtype."""


class Attention(nnx.Module):
    """Parameters and projections; `qkv_kernel` has [G queries, key, value] per key-value head."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype) -> None:
        heads, groups, size = config.num_key_value_heads, config.query_groups, config.head_dim
        hidden = config.hidden_size
        self.qkv_kernel = nnx.Param(jnp.zeros((hidden, heads, groups + 2, size), dtype))
        self.qkv_bias = (
            nnx.Param(jnp.zeros((heads, groups + 2, size), dtype))
            if config.attention_bias
            else None
        )
        self.query_norm = RMSNorm.of(config, size, dtype) if config.qk_norm else None
        self.key_norm = RMSNorm.of(config, size, dtype) if config.qk_norm else None
        self.gate_kernel = (
            nnx.Param(jnp.zeros((hidden, heads, groups, size), dtype))
            if config.output_gate
            else None
        )
        self.out_kernel = nnx.Param(jnp.zeros((heads, groups, size, hidden), dtype))

    def queries_keys_values(self, x: jax.Array, rotary: Rotary) -> QueriesKeysValues:
        """Project normalized x [R, L, H]; normalize and rotate queries and keys."""
        qkv = project(x, self.qkv_kernel[...])  # [R, L, K, G + 2, D]
        if self.qkv_bias is not None:
            qkv += self.qkv_bias[...].astype(jnp.float32)
        turned = qkv[..., :-1, :]
        if self.query_norm is not None and self.key_norm is not None:
            normalized = (self.query_norm(turned[..., :-1, :]), self.key_norm(turned[..., -1:, :]))
            turned = jnp.concatenate(normalized, axis=-2)
        turned = round_to(rotate(turned, rotary), x.dtype)
        return turned[..., :-1, :], turned[..., -1, :], round_to(qkv[..., -1, :], x.dtype)

    def gated(self, attended: jax.Array, x: jax.Array) -> jax.Array:
        """Apply the output gate of normalized x [R, L, H] to heads [R, L, K, G, D]."""
        if self.gate_kernel is None:
            return attended
        gate = jax.nn.sigmoid(project(x, self.gate_kernel[...]))
        return round_to(attended.astype(jnp.float32) * gate, attended.dtype)

    def output(self, heads: jax.Array) -> jax.Array:
        """Project heads [R, L, K, G, D] to an update, [R, L, H] float32."""
        kernel = self.out_kernel[...]
        width, hidden = kernel.size // kernel.shape[-1], kernel.shape[-1]
        flat = heads.reshape(*heads.shape[:2], width)
        return sum_over(project(flat, kernel.reshape(width, hidden)), MODEL_AXIS, heads.dtype)


def attention_of_slots(
    slots: jax.Array, qkv: QueriesKeysValues, segment_ids: jax.Array, window: int | None
) -> jax.Array:
    """Compute causal attention without blocks, for the queries of selected slots of each row.

    Args:
        slots: [R, S] int32, the slot of each query.
        qkv: queries of the selected slots, [R, S, K, G, D], and keys and values of whole rows.
        segment_ids: [R, L] int32; a query sees the slots of its segment up to its own slot.
        window: maximum number of slots that a query sees, including its own; None for no limit.

    Returns:
        [R, S, K, G, D], in the dtype of the queries.
    """
    query, key, value = qkv
    scale = 1.0 / math.sqrt(query.shape[-1])
    scores = product("rqkgd,rskd->rkgqs", query, key)
    query_segments = jnp.take_along_axis(segment_ids, slots, axis=1)
    distances = slots[:, :, None] - jnp.arange(key.shape[1])
    visible = (query_segments[:, :, None] == segment_ids[:, None, :]) & (distances >= 0)
    if window is not None:
        visible &= distances < window
    scores = jnp.where(visible[:, None, None], scores * scale, MASKED)
    weights = round_to(jax.nn.softmax(scores, axis=-1), value.dtype)
    return round_to(product("rkgqs,rskd->rqkgd", weights, value), query.dtype)
