"""Gated delta network (https://arxiv.org/abs/2412.06464), the mixer of Qwen3.5's linear layers.

Each head has a state that maps keys to values. A token decays the state and replaces the value that
the state has for the token's key. Additional shape letters: K key heads, V value heads per key
head, D dimensions of a key, E dimensions of a value, W total width of a key head's query, key and
values, N chunks of C slots.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from qwen.config import DELTA_CHUNK, DeltaConfig
from qwen.layers.norm import RMSNorm
from qwen.layers.precision import precision_of, project, round_to
from qwen.mesh import MODEL_AXIS, sum_over

NORM_EPSILON = 1e-6
"""Epsilon of the L2 norm of queries and keys."""


class GatedDeltaNet(nnx.Module):
    """Parameters and projections; `qkv_kernel` has [query, key, V values] per key head."""

    def __init__(self, config: DeltaConfig, hidden: int, epsilon: float, dtype: jnp.dtype) -> None:
        heads, groups = config.num_key_heads, config.value_groups
        values = groups * config.value_head_dim
        self.key_size = config.key_head_dim
        width = 2 * config.key_head_dim + values
        self.qkv_kernel = nnx.Param(jnp.zeros((hidden, heads, width), dtype))
        self.conv_kernel = nnx.Param(jnp.zeros((config.conv_kernel_dim, heads, width), dtype))
        self.beta_kernel = nnx.Param(jnp.zeros((hidden, heads, groups), dtype))
        self.decay_kernel = nnx.Param(jnp.zeros((hidden, heads, groups), dtype))
        self.decay_bias = nnx.Param(jnp.zeros((heads, groups), jnp.float32))
        self.decay_log_rate = nnx.Param(jnp.zeros((heads, groups), jnp.float32))
        self.gate_kernel = nnx.Param(jnp.zeros((hidden, heads, values), dtype))
        self.norm = RMSNorm(config.value_head_dim, epsilon, dtype)
        self.out_kernel = nnx.Param(jnp.zeros((heads, values, hidden), dtype))

    def mixed(
        self, x: jax.Array, segment_ids: jax.Array, positions: jax.Array, chunk: int
    ) -> jax.Array:
        """Apply the convolution and the delta rule to normalized x [R, L, H].

        The convolution and the state restart at each sample of a row. Chunks have `chunk` slots, or
        `DELTA_CHUNK` as in transformers if x is float32.

        Returns:
            [R, L, K, V, E], in the dtype of x.
        """
        if precision_of(x) is not None:
            chunk = DELTA_CHUNK
        qkv = round_to(project(x, self.qkv_kernel[...]), x.dtype)  # [R, L, K, W]
        qkv = jax.nn.silu(_convolve(qkv, self.conv_kernel[...].astype(jnp.float32), positions))
        query, key, value = jnp.split(qkv, (self.key_size, 2 * self.key_size), axis=-1)
        beta = jax.nn.sigmoid(project(x, self.beta_kernel[...]))  # [R, L, K, V]
        rate = jax.nn.softplus(project(x, self.decay_kernel[...]) + self.decay_bias[...])
        decay = -jnp.exp(self.decay_log_rate[...]) * rate
        value = value.reshape(*beta.shape, -1)
        query = _normalized(query) / math.sqrt(self.key_size)
        read = gated_delta_rule(
            query, _normalized(key), value, decay, beta, segment_ids, chunk, precision_of(x)
        )
        return round_to(read, x.dtype)

    def gated(self, heads: jax.Array, x: jax.Array) -> jax.Array:
        """Normalize heads [R, L, K, V, E] and apply the output gate of normalized x [R, L, H]."""
        gate = project(x, self.gate_kernel[...]).reshape(heads.shape)
        normalized = self.norm(heads.astype(jnp.float32))
        return round_to(normalized * jax.nn.silu(gate), heads.dtype)

    def output(self, heads: jax.Array) -> jax.Array:
        """Project heads [R, L, K, V, E] to an update, [R, L, H] float32."""
        kernel = self.out_kernel[...]
        flat = heads.reshape(*heads.shape[:2], -1)
        return sum_over(project(flat, kernel.reshape(flat.shape[-1], -1)), MODEL_AXIS, heads.dtype)


class _Chunk(NamedTuple):
    """Inputs of one step of the scan over chunks, for all rows and heads.

    Attributes:
        query: [R, K, V, C, D], queries, decayed since the start of the chunk; 0 for samples that
            begin in the chunk.
        scores: [R, K, V, C, C], decayed scores between the queries and keys of the chunk.
        value: [R, K, V, C, E], values to write, including the part that the state already has.
        known: [R, K, V, C, D], keys that read the part of the values that the state already has.
        key: [R, K, V, C, D], keys, decayed until the end of the chunk; 0 for samples that end in
            the chunk.
        decay: [R, K, V], decay of the state over the chunk; 0 if its sample ends in the chunk.
    """

    query: jax.Array
    scores: jax.Array
    value: jax.Array
    known: jax.Array
    key: jax.Array
    decay: jax.Array


def gated_delta_rule(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    decay: jax.Array,
    beta: jax.Array,
    segment_ids: jax.Array,
    slots: int,
    precision: jax.lax.Precision | None,
) -> jax.Array:
    """Compute the gated delta rule in chunks, like `chunk_gated_delta_rule` in transformers.

    Args:
        query: [R, L, K, D] float32; L is a multiple of `slots`.
        key: [R, L, K, D] float32, with L2 norm 1.
        value: [R, L, K, V, E] float32.
        decay: [R, L, K, V] float32, logarithm of the state's decay factor; at most 0.
        beta: [R, L, K, V] float32, fraction of a key's value that a token replaces.
        segment_ids: [R, L] int32; the state is empty at the start of each segment.
        slots: number of slots per chunk.
        precision: precision of the matrix products.

    Returns:
        [R, L, K, V, E] float32.
    """
    rows, length, heads, groups, size = value.shape
    chunks = length // slots

    def product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(subscripts, a, b, precision=precision)

    def by_chunk(x: jax.Array) -> jax.Array:
        """Split [R, L, K, ..., last] into chunks [N, R, K, ..., C, last]."""
        x = x.reshape(rows, chunks, slots, *x.shape[2:])
        return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 2, -2)

    q, k, v = by_chunk(query)[:, :, :, None], by_chunk(key)[:, :, :, None], by_chunk(value)
    b, g = (by_chunk(x[..., None])[..., 0] for x in (beta, decay))  # [N, R, K, V, C]
    total = jnp.cumsum(g, axis=-1)

    segments = segment_ids.reshape(rows, chunks, slots).swapaxes(0, 1)  # [N, R, C]
    last = segments[..., -1]
    before = jnp.concatenate([jnp.full_like(last[:1], -1), last[:-1]])
    continued = (segments == before[..., None])[:, :, None, None]  # [N, R, 1, 1, C]
    continues = (segments == last[..., None])[:, :, None, None]
    passes = (before == last)[:, :, None, None]

    earlier = jnp.tril(jnp.ones((slots, slots), bool))
    related = (segments[..., :, None] == segments[..., None, :]) & earlier
    between = total[..., :, None] - total[..., None, :]
    between = jnp.exp(jnp.where(related[:, :, None, None], between, -jnp.inf))
    overlaps = product("nrkvcd,nrkvsd->nrkvcs", k, k) * between * b[..., None]
    since_start = jnp.exp(total)[..., None] * continued[..., None]
    written = jnp.concatenate([v, k * since_start], axis=-1) * b[..., None]
    solved = jax.scipy.linalg.solve_triangular(overlaps, written, lower=True, unit_diagonal=True)

    def step(state: jax.Array, chunk: _Chunk) -> tuple[jax.Array, jax.Array]:
        new = chunk.value - product("rkvcd,rkvde->rkvce", chunk.known, state)
        read = product("rkvcd,rkvde->rkvce", chunk.query, state)
        read += product("rkvcs,rkvse->rkvce", chunk.scores, new)
        state = state * chunk.decay[..., None, None]
        return state + product("rkvcd,rkvce->rkvde", chunk.key, new), read

    state = jnp.zeros((rows, heads, groups, key.shape[-1], size), jnp.float32)
    _, read = jax.lax.scan(
        step,
        state,
        _Chunk(
            query=q * since_start,
            scores=product("nrkvcd,nrkvsd->nrkvcs", q, k) * between,
            value=solved[..., :size],
            known=solved[..., size:],
            key=k * (jnp.exp(total[..., -1:] - total) * continues)[..., None],
            decay=jnp.exp(total[..., -1]) * passes,
        ),
    )
    return jnp.moveaxis(read, (0, 4), (1, 2)).reshape(rows, length, heads, groups, size)


def _convolve(x: jax.Array, kernel: jax.Array, positions: jax.Array) -> jax.Array:
    """Convolve x [R, L, K, W] with a kernel [taps, K, W], per channel and within samples."""
    taps = len(kernel)
    total = x * kernel[-1]
    for back in range(1, taps):
        shifted = jnp.pad(x, ((0, 0), (back, 0), (0, 0), (0, 0)))[:, : x.shape[1]]
        own = (positions >= back)[..., None, None]
        total += jnp.where(own, shifted, 0) * kernel[taps - 1 - back]
    return total


def _normalized(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + NORM_EPSILON)
