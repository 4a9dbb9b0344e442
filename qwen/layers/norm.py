"""RMSNorm (https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from qwen.layers.precision import round_to


class RMSNorm(nnx.Module):
    def __init__(self, size: int, epsilon: float, dtype: jnp.dtype) -> None:
        self.scale = nnx.Param(jnp.ones(size, dtype))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize the last axis of x in float32; the result has the dtype of x."""
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return round_to(x32 * inverse * self.scale[...].astype(jnp.float32), x.dtype)
