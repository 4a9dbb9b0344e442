"""Selection and pooling of slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qwen.layers.precision import product


def gather_slots(x: jax.Array, slots: jax.Array) -> jax.Array:
    """Gather the slots [R, S] of x [R, L, ...] into [R, S, ...]."""
    return jax.vmap(lambda row, at: row[at])(x, slots)


def mean_of_segments(x: jax.Array, segment_ids: jax.Array, segments: int) -> jax.Array:
    """Average x [R, L, H] over each segment id from 1 to `segments`.

    Returns:
        [R, segments, H] float32; 0 for a segment without tokens.
    """
    members = segment_ids[:, None, :] == jnp.arange(1, segments + 1)[None, :, None]
    totals = product("rsl,rlh->rsh", members.astype(x.dtype), x)
    return totals / jnp.maximum(members.sum(-1), 1)[..., None]
