"""RMSNorm (https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from qwen.config import ModelConfig
from qwen.layers.precision import round_to


class RMSNorm(nnx.Module):
    """RMSNorm with a learned scale."""

    def __init__(self, size: int, epsilon: float, dtype: jnp.dtype) -> None:
        self.scale = nnx.Param(jnp.ones(size, dtype))
        self.epsilon = epsilon

    @classmethod
    def of(cls, config: ModelConfig, size: int, dtype: jnp.dtype) -> RMSNorm:
        """Return a norm for a model; the scale is float32 if checkpoints store it minus 1."""
        return cls(
            size,
            config.rms_norm_eps,
            jnp.dtype(jnp.float32) if config.zero_centered_norms else dtype,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize the last axis of x in float32; the result has the dtype of x."""
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return round_to(x32 * inverse * self.scale[...].astype(jnp.float32), x.dtype)
