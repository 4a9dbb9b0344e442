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
import numpy as np

from qwen.config import ModelConfig
from qwen.ops import amx
from qwen.rounding import round_to

AttentionForm = Literal["reference", "blocked", "amx", "splash", "cudnn"]

MASKED = -1e30
"""Score of a pair that may not attend; finite, so that no row of scores is all infinities."""


SPLASH_BLOCK = 512
"""Slots of a block of the TPU kernel: large enough to keep its matrix unit busy."""


def fastest_form(
    device: jax.Device, dtype: jnp.dtype, config: ModelConfig, parts: int = 1
) -> AttentionForm:
    """The fastest form that a device has for a model computed in this dtype.

    cuDNN's kernel takes half precision only, on NVIDIA GPUs from compute capability 8.0 (A100, L4)
    on; elsewhere the blocked form keeps memory small.

    Args:
      parts: devices that a layer is split over.
    """
    if device.platform == "cpu" and amx.fits(config, dtype, parts):
        return "amx"
    if device.platform == "tpu":
        return "splash"
    if device.platform == "gpu" and dtype.itemsize == 2:
        major = str(getattr(device, "compute_capability", "")).partition(".")[0]
        if major.isdigit() and int(major) >= 8:
            return "cudnn"
    return "blocked"


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
    if form == "amx":
        return amx.attention(query, key, value, positions)
    if form == "splash":
        return splash_attention(query, key, value, segment_ids, positions)
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
    positions: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """The Pallas TPU kernel that ships with JAX. The length must be a multiple of 128.

    The kernel is told per call which key blocks each query block may see, so that it skips the
    blocks of other samples as it skips those that come later. All rows are one sequence to it.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import (
        MaskInfo,
    )

    rows, length, heads, groups, head_dim = query.shape
    slots, block = rows * length, math.gcd(length, SPLASH_BLOCK)
    per_row = length // block
    own = jnp.arange(slots // block)
    first = own - (positions.reshape(-1)[::block] + block - 1) // block
    wanted = (own // per_row * per_row)[:, None] + jnp.arange(per_row)
    visible = (wanted >= first[:, None]) & (wanted <= own[:, None])
    # The order that the compiler makes the projections in: any other costs it copies.
    layout = splash.QKVLayout.SEQ_MINOR if rows == 1 else splash.QKVLayout.HEAD_DIM_MINOR
    attend = splash.SplashAttentionKernel(
        MaskInfo(
            # A block that is not visible is not fetched either: the next or last one stays.
            data_next=jnp.clip(wanted, first[:, None], own[:, None])[None],
            block_mask=visible.astype(jnp.int32)[None],
            mask_next=None,
            partial_mask_blocks=None,
            q_sequence=np.arange(slots, dtype=np.int32),
        ),
        dq_mask_info=None,
        dkv_mask_info=None,
        is_mqa=False,
        block_sizes=splash.BlockSizes(
            block_q=block, block_kv=block, q_layout=layout, k_layout=layout, v_layout=layout
        ),
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=None,
        mask_function=_not_later,
        interpret=interpret,
    )
    scaled = round_to(query.astype(jnp.float32) / math.sqrt(head_dim), query.dtype)
    q = scaled.reshape(slots, heads * groups, head_dim).transpose(1, 0, 2)
    k, v = (x.reshape(slots, heads, head_dim).transpose(1, 0, 2) for x in (key, value))
    segments = segment_ids.reshape(slots)
    with jax.default_matmul_precision("highest" if query.dtype == jnp.float32 else "default"):
        out = attend(q, k, v, splash.SegmentIds(segments, segments))
    assert isinstance(out, jax.Array)
    return out.reshape(heads, groups, rows, length, head_dim).transpose(2, 3, 0, 1, 4)


def _not_later(query_slots: jax.Array, key_slots: jax.Array) -> jax.Array:
    return query_slots >= key_slots


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """cuDNN's fused attention on NVIDIA GPUs, for half precision.

    The mask of segments reaches the kernel as a bias of [rows, 1, length, length] in the query's
    dtype, so what a step holds grows with the row length.
    """
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
