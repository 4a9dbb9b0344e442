"""Rotary position embedding (https://arxiv.org/abs/2104.09864), split in halves."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from qwen.config import ModelConfig, RopeScaling

Rotary = tuple[jax.Array, jax.Array]
"""Cosines and sines, [R, L, rotated dimensions / 2] float32; all layers of a step share them."""


def rotary_embedding(positions: jax.Array, config: ModelConfig) -> Rotary:
    """Compute the cosines and sines of integer positions [R, L]."""
    frequencies, scaling = rotary_frequencies(config)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * scaling, jnp.sin(angles) * scaling


def rotary_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Return the frequencies and the factor of the cosines and sines.

    The frequencies are radians per position, [rotated dimensions / 2] float32. The definitions
    follow `modeling_rope_utils.py` in transformers, with the same order of the roundings to
    float32: at position 30,000, an error in the last bit changes an angle by 0.002.
    """
    dims = config.rotary_dim or config.head_dim
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    # numpy's power of float32 is less exact than that of torch.
    periods = (config.rope_theta ** exponents.astype(np.float64)).astype(np.float32)
    frequencies = 1 / periods
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies, 1.0
    factor, is_yarn = np.float32(scaling.factor), scaling.rope_type == "yarn"
    longer = 1 / (factor * periods) if is_yarn else frequencies / factor
    if scaling.rope_type == "linear":
        return longer, 1.0
    ramp = _yarn if is_yarn else _llama3
    kept = ramp(frequencies, config.rope_theta, scaling).astype(np.float32)
    return longer * (1 - kept) + frequencies * kept, scaling.attention_factor


def _yarn(frequencies: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Return the kept fraction of each frequency, by rotations in the original context window."""
    dims = 2 * len(frequencies)

    def dimension(rotations: float) -> float:
        length = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dims * math.log(length) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    width = high - low or 0.001
    return 1 - np.clip((np.arange(len(frequencies), dtype=np.float32) - low) / width, 0, 1)


def _llama3(frequencies: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Return the kept fraction of each frequency, by rotations in the original context window."""
    rotations = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return np.clip((rotations - low) / (high - low), 0, 1)


def rotate(x: jax.Array, rotary: Rotary) -> jax.Array:
    """Rotate the first dimensions of x [R, L, heads..., D] float32 by the angles of the slots."""
    between = tuple(range(2, x.ndim - 1))
    cosines, sines = (jnp.expand_dims(a, between) for a in rotary)
    half = cosines.shape[-1]
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    rotated = (first * cosines - second * sines, second * cosines + first * sines, rest)
    return jnp.concatenate(rotated, axis=-1)
