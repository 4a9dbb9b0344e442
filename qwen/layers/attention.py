"""Grouped-query attention: its parameters, its projections and its definition."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from qwen.config import ModelConfig
from qwen.layers.precision import product, project, round_to
from qwen.layers.rope import Rotary, rotate
from qwen.mesh import MODEL_AXIS, sum_over

MASKED = -1e30
"""Score of a pair that may not attend; finite, so that no row of scores is all infinities."""

QueriesKeysValues = tuple[jax.Array, jax.Array, jax.Array]
"""[R, L, K, G, D], [R, L, K, D] and [R, L, K, D] in the model's dtype."""


class Attention(nnx.Module):
    """Parameters and projections; one kernel holds, per key-value head, [G queries, key, value]."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype) -> None:
        heads, groups, size = config.num_key_value_heads, config.query_groups, config.head_dim
        hidden = config.hidden_size
        self.qkv_kernel = nnx.Param(jnp.zeros((hidden, heads, groups + 2, size), dtype))
        self.qkv_bias = nnx.Param(jnp.zeros((heads, groups + 2, size), dtype))
        self.out_kernel = nnx.Param(jnp.zeros((heads, groups, size, hidden), dtype))

    def queries_keys_values(self, x: jax.Array, rotary: Rotary) -> QueriesKeysValues:
        """Project normalized x [R, L, H] and rotate queries and keys."""
        qkv = project(x, self.qkv_kernel[...])  # [R, L, K, G + 2, D]
        qkv += self.qkv_bias[...].astype(jnp.float32)
        rotated = round_to(rotate(qkv[..., :-1, :], rotary), x.dtype)
        return rotated[..., :-1, :], rotated[..., -1, :], round_to(qkv[..., -1, :], x.dtype)

    def output(self, attended: jax.Array) -> jax.Array:
        """Project what attention gives, [R, L, K, G, D], to an update, [R, L, H] float32."""
        kernel = self.out_kernel[...]
        width, hidden = kernel.size // kernel.shape[-1], kernel.shape[-1]
        flat = attended.reshape(*attended.shape[:2], width)
        return sum_over(project(flat, kernel.reshape(width, hidden)), MODEL_AXIS)


def attention_of_slots(
    slots: jax.Array, qkv: QueriesKeysValues, segment_ids: jax.Array
) -> jax.Array:
    """Compute the definition of causal attention, for the queries of some slots of each row.

    Args:
      slots: [R, S] int32, the slot that each query belongs to.
      qkv: the queries of those slots, [R, S, K, G, D], and the keys and values of the whole rows.
      segment_ids: [R, L] int32; a query sees the slots of its own segment up to its own slot.

    Returns:
      [R, S, K, G, D], in the dtype of the queries.
    """
    query, key, value = qkv
    scale = 1.0 / math.sqrt(query.shape[-1])
    scores = product("rqkgd,rskd->rkgqs", query, key)
    query_segments = jnp.take_along_axis(segment_ids, slots, axis=1)
    visible = (query_segments[:, :, None] == segment_ids[:, None, :]) & (
        slots[:, :, None] >= jnp.arange(key.shape[1])
    )
    scores = jnp.where(visible[:, None, None], scores * scale, MASKED)
    weights = round_to(jax.nn.softmax(scores, axis=-1), value.dtype)
    return round_to(product("rkgqs,rskd->rqkgd", weights, value), query.dtype)
