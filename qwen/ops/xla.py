"""Operations for every platform, tuned for XLA's compiler for CPUs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from qwen.layers.attention import MASKED, QueriesKeysValues
from qwen.layers.mlp import MLP, gated
from qwen.layers.norm import RMSNorm
from qwen.layers.precision import product, project, round_to
from qwen.ops.base import Ops, Updated

ATTENTION_BLOCK = 128
"""Number of slots per block of queries or keys."""

MLP_CHUNK = 512
"""Number of slots that the MLP processes at a time, so that its intermediate stays in cache."""

GROUP_BLOCK = 128
"""Number of rows of a group that the group's MLP processes at a time."""

TOTAL_COLUMNS = 16
"""Number of columns of ones after the values, so that one product sums both values and weights."""


class XlaOps(Ops):
    """Operations for every platform."""

    name = "xla"
    delta_chunk = 32

    def attend(
        self,
        qkv: QueriesKeysValues,
        segment_ids: jax.Array,
        positions: jax.Array,
        window: int | None,
    ) -> jax.Array:
        """Compute attention in blocks with a running softmax.

        At most [K, G * block, block] scores exist at a time. The loop skips key blocks that no
        query of a block may see: later blocks, and blocks before the first segment that reaches
        into the query block (Dao, FlashAttention-2, https://arxiv.org/abs/2307.08691, section 3.1).
        """
        return jax.lax.map(lambda row: _attend_row(window, *row), (*qkv, segment_ids, positions))

    def add_mlp(self, x: jax.Array, norm: RMSNorm, mlp: MLP, keep_update: bool) -> Updated:
        rows, length, hidden = x.shape
        slots = rows * length
        if slots <= MLP_CHUNK or slots % MLP_CHUNK:
            return super().add_mlp(x, norm, mlp, keep_update)
        add_mlp = super().add_mlp
        update, after = jax.lax.map(
            lambda chunk: add_mlp(chunk, norm, mlp, keep_update), x.reshape(-1, MLP_CHUNK, hidden)
        )
        return update.reshape(x.shape), after.reshape(x.shape)

    def mlps_of_groups(
        self, x: jax.Array, sizes: jax.Array, kernels: tuple[jax.Array, jax.Array, jax.Array]
    ) -> jax.Array:
        """Apply the MLP of each group to blocks of its rows.

        On CPUs, XLA's `ragged_dot` would multiply all rows by the kernels of all groups. The last
        block of a group may contain rows of later groups. The loop writes blocks in ascending
        order, so later groups overwrite these rows.
        """
        total, hidden = x.shape
        ends = jnp.cumsum(sizes)
        blocks = -(-sizes // GROUP_BLOCK)
        block_ends = jnp.cumsum(blocks)
        padded = jnp.concatenate([x, jnp.zeros((GROUP_BLOCK, hidden), x.dtype)])

        def compute(block: jax.Array, out: jax.Array) -> jax.Array:
            group = jnp.searchsorted(block_ends, block, side="right")
            nth = block - (block_ends[group] - blocks[group])
            start = ends[group] - sizes[group] + nth * GROUP_BLOCK
            rows = jax.lax.dynamic_slice_in_dim(padded, start, GROUP_BLOCK)
            gate, up, down = (kernel[group] for kernel in kernels)
            update = project(gated(project(rows, gate), project(rows, up), x.dtype), down)
            return jax.lax.dynamic_update_slice_in_dim(out, update, start, 0)

        out = jnp.zeros((total + GROUP_BLOCK, hidden), jnp.float32)
        return jax.lax.fori_loop(0, block_ends[-1], compute, out)[:total]


def _attend_row(
    window: int | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    positions: jax.Array,
) -> jax.Array:
    """Compute attention of one row; shapes are as in `Ops.attend`, without the first axis."""
    length, heads, groups, head_dim = query.shape
    block = math.gcd(length, ATTENTION_BLOCK)
    blocks, dtype = length // block, query.dtype
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
        reach = positions[first] if window is None else jnp.minimum(positions[first], window - 1)
        first_visible = (first - reach) // block

        def accumulate(
            other: jax.Array, carry: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            top, weighted = carry  # [K, G * block], [K, G * block, D + TOTAL_COLUMNS]
            scores = product("kqd,kds->kqs", q[index], k[other])
            visible = segments[index][:, None] == segments[other][None, :]
            distances = first + offsets[:, None] - (other * block + offsets[None, :])
            visible &= distances >= 0
            if window is not None:
                visible &= distances < window
            scores = scores.reshape(heads, groups, block, block)
            scores = jnp.where(visible, scores, MASKED).reshape(heads, groups * block, block)
            new_top = jnp.maximum(top, scores.max(-1))
            weights = round_to(jnp.exp(scores - new_top[..., None]), dtype)
            decay = jnp.exp(top - new_top)[..., None]
            return new_top, weighted * decay + product("kqs,ksd->kqd", weights, v[other])

        start = (
            jnp.full((heads, groups * block), MASKED, jnp.float32),
            jnp.zeros((heads, groups * block, head_dim + TOTAL_COLUMNS), jnp.float32),
        )
        _, weighted = jax.lax.fori_loop(first_visible, index + 1, accumulate, start)
        return round_to(weighted[..., :head_dim] / weighted[..., head_dim:][..., :1], dtype)

    out = jax.lax.map(attend_block, jnp.arange(blocks))
    out = out.reshape(blocks, heads, groups, block, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(length, heads, groups, head_dim)
