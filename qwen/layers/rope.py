"""Rotary position embedding (https://arxiv.org/abs/2104.09864), half-split as in transformers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qwen.config import ModelConfig

Rotary = tuple[jax.Array, jax.Array]
"""Cosines and sines, [R, L, D / 2] float32 each, the same for all layers of a step."""


def rotary_embedding(positions: jax.Array, config: ModelConfig) -> Rotary:
    """Compute the cosines and sines of integer positions [R, L]."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    angles = positions[..., None].astype(jnp.float32) / config.rope_theta**exponents
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotary: Rotary) -> jax.Array:
    """Rotate x [R, L, heads..., D] float32 by the angles of its slots."""
    between = tuple(range(2, x.ndim - 1))
    cosines, sines = (jnp.expand_dims(a, between) for a in rotary)
    first, second = jnp.split(x, 2, axis=-1)
    rotated = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(rotated, axis=-1)
