"""Pooling of the slots of the rows to one vector for each sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qwen.layers.precision import product


def gather_slots(x: jax.Array, slots: jax.Array) -> jax.Array:
    """Take x [R, L, ...] at slots [R, S]: [R, S, ...]."""
    return jax.vmap(lambda row, at: row[at])(x, slots)


def mean_of_segments(x: jax.Array, segment_ids: jax.Array, segments: int) -> jax.Array:
    """Average the tokens of each segment id from 1 on: [R, L, H] to [R, segments, H] float32.

    A segment without tokens has the mean 0.
    """
    members = segment_ids[:, None, :] == jnp.arange(1, segments + 1)[None, :, None]
    totals = product("rsl,rlh->rsh", members.astype(x.dtype), x)
    return totals / jnp.maximum(members.sum(-1), 1)[..., None]
