"""Causal grouped-query attention over rows that hold several samples, one form per platform.

Every form computes the same thing: a token attends to itself and to earlier tokens of its own
segment. Shapes, with K key-value heads, G query heads for each, D head dimensions:

  query        [rows, length, K, G, D]
  key, value   [rows, length, K, D]
  segment_ids  [rows, length] int32   1, 2, ... for samples, 0 for padding
  positions    [rows, length] int32   of a token in its own sample
  result       [rows, length, K, G, D], the query's dtype

Scores and their softmax are float32. What a padding slot gets is finite and otherwise arbitrary.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from qwen2.rounding import round_to

AttentionForm = Literal["reference", "blocked", "splash", "cudnn"]

MASKED = -1e30
"""Score of a pair that may not attend; finite, so that no row of scores is all infinities."""


def form_for_platform(platform: str) -> AttentionForm:
    """The fastest form on a JAX platform ("cpu", "tpu", "gpu")."""
    forms: dict[str, AttentionForm] = {"cpu": "blocked", "tpu": "splash", "gpu": "cudnn"}
    return forms.get(platform, "reference")


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    form: AttentionForm,
) -> jax.Array:
    """Attention in one of the forms; shapes and meaning as the module describes."""
    if form == "blocked":
        return blocked_attention(query, key, value, segment_ids, positions)
    if form == "splash":
        return splash_attention(query, key, value, segment_ids)
    if form == "cudnn":
        return cudnn_attention(query, key, value, segment_ids)
    return reference_attention(query, key, value, segment_ids)


def reference_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """The definition, with all scores in memory at once."""
    slots = jnp.broadcast_to(jnp.arange(query.shape[1]), query.shape[:2])
    return attention_of_slots(query, slots, key, value, segment_ids)


def attention_of_slots(
    query: jax.Array,
    slots: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
) -> jax.Array:
    """Attention for the queries of some slots only.

    Args:
      query: [rows, queries, K, G, D], the queries of those slots.
      slots: [rows, queries] int32, the slot that each query belongs to.

    Returns:
      [rows, queries, K, G, D]
    """
    scale = 1.0 / math.sqrt(query.shape[-1])
    scores = _product("rqkgd,rskd->rkgqs", query, key)
    query_segments = jnp.take_along_axis(segment_ids, slots, axis=1)
    visible = (query_segments[:, :, None] == segment_ids[:, None, :]) & (
        slots[:, :, None] >= jnp.arange(key.shape[1])
    )
    scores = jnp.where(visible[:, None, None], scores * scale, MASKED)
    weights = round_to(jax.nn.softmax(scores, axis=-1), value.dtype)
    return round_to(_product("rkgqs,rskd->rqkgd", weights, value), query.dtype)


def blocked_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    block: int = 128,
) -> jax.Array:
    """Attention by blocks with a running softmax, for CPUs.

    Never holds more scores than [K, G * block, block], and skips the key blocks that no query of a
    block may see: those after it, and those before the first segment that reaches into it
    (Dao et al., FlashAttention-2, https://arxiv.org/abs/2307.08691, section 3.1).
    """
    length = query.shape[1]
    block = math.gcd(length, block)
    attend = partial(_attend_row, block=block, blocks=length // block)
    return jax.lax.map(lambda row: attend(*row), (query, key, value, segment_ids, positions))


TOTAL_COLUMNS = 16
"""Columns of ones beside the values, so that the product that sums them sums the weights too."""


def _attend_row(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    positions: jax.Array,
    block: int,
    blocks: int,
) -> jax.Array:
    """One row of ``blocked_attention``: shapes as there, without the first axis."""
    _, heads, groups, head_dim = query.shape
    dtype = query.dtype
    q = round_to(query.astype(jnp.float32) / math.sqrt(head_dim), dtype)
    q = q.reshape(blocks, block, heads, groups, head_dim).transpose(0, 2, 3, 1, 4)
    q = q.reshape(blocks, heads, groups * block, head_dim)
    k = key.reshape(blocks, block, heads, head_dim).transpose(0, 2, 3, 1)
    v = value.reshape(blocks, block, heads, head_dim).transpose(0, 2, 1, 3)
    v = jnp.concatenate([v, jnp.ones((*v.shape[:-1], TOTAL_COLUMNS), dtype)], axis=-1)
    segments = segments.reshape(blocks, block)
    offsets = jnp.arange(block)

    def attend_block(index: jax.Array) -> jax.Array:
        first = index * block
        first_visible = (first - positions[first]) // block

        def accumulate(
            other: jax.Array, carry: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            top, weighted = carry  # [K, G * block], [K, G * block, D + TOTAL_COLUMNS]
            scores = _product("kqd,kds->kqs", q[index], k[other])
            visible = segments[index][:, None] == segments[other][None, :]
            visible &= first + offsets[:, None] >= other * block + offsets[None, :]
            scores = scores.reshape(heads, groups, block, block)
            scores = jnp.where(visible, scores, MASKED).reshape(heads, groups * block, block)
            new_top = jnp.maximum(top, scores.max(-1))
            weights = round_to(jnp.exp(scores - new_top[..., None]), dtype)
            decay = jnp.exp(top - new_top)[..., None]
            return new_top, weighted * decay + _product("kqs,ksd->kqd", weights, v[other])

        start = (
            jnp.full((heads, groups * block), MASKED, jnp.float32),
            jnp.zeros((heads, groups * block, head_dim + TOTAL_COLUMNS), jnp.float32),
        )
        _, weighted = jax.lax.fori_loop(first_visible, index + 1, accumulate, start)
        return round_to(weighted[..., :head_dim] / weighted[..., head_dim:][..., :1], dtype)

    out = jax.lax.map(attend_block, jnp.arange(blocks))
    out = out.reshape(blocks, heads, groups, block, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(blocks * block, heads, groups, head_dim)


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum of two operands, accumulated in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(subscripts, a, b, precision=precision, preferred_element_type=jnp.float32)


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """The Pallas TPU kernel that ships with JAX. The length must be a multiple of 128."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    _, length, heads, groups, head_dim = query.shape
    block = math.gcd(length, 512)
    kernel = kernels.make_splash_mha_single_device(
        mask=masks.MultiHeadMask([masks.CausalMask((length, length))] * (heads * groups)),
        block_sizes=kernels.BlockSizes(block_q=block, block_kv=block, block_kv_compute=block),
        interpret=interpret,
    )

    @jax.vmap
    def attend_row(q: jax.Array, k: jax.Array, v: jax.Array, s: jax.Array) -> jax.Array:
        q = q.reshape(length, heads * groups, head_dim).transpose(1, 0, 2)
        out = kernel(q, k.transpose(1, 0, 2), v.transpose(1, 0, 2), kernels.SegmentIds(s, s))
        return out.transpose(1, 0, 2).reshape(length, heads, groups, head_dim)

    scaled = (query.astype(jnp.float32) / math.sqrt(head_dim)).astype(query.dtype)
    return attend_row(scaled, key, value, segment_ids).astype(query.dtype)


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """cuDNN's fused attention on NVIDIA GPUs."""
    rows, length, heads, groups, head_dim = query.shape
    same_segment = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    out = jax.nn.dot_product_attention(
        query.reshape(rows, length, heads * groups, head_dim),
        key,
        value,
        mask=same_segment,
        is_causal=True,
        implementation="cudnn",
    )
    return out.reshape(query.shape)
