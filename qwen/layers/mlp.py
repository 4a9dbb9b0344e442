"""The gated MLP, SwiGLU (https://arxiv.org/abs/2002.05202)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from qwen.layers.precision import project, round_to
from qwen.mesh import MODEL_AXIS, sum_over


class MLP(nnx.Module):
    """Kernels of the gate, up and down projections."""

    def __init__(self, hidden: int, intermediate: int, dtype: jnp.dtype) -> None:
        self.gate_kernel = nnx.Param(jnp.zeros((hidden, intermediate), dtype))
        self.up_kernel = nnx.Param(jnp.zeros((hidden, intermediate), dtype))
        self.down_kernel = nnx.Param(jnp.zeros((intermediate, hidden), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the update of normalized x [..., H], in float32."""
        gate, up = project(x, self.gate_kernel[...]), project(x, self.up_kernel[...])
        update = project(gated(gate, up, x.dtype), self.down_kernel[...])
        return sum_over(update, MODEL_AXIS, x.dtype)


def gated(gate: jax.Array, up: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Compute silu(gate) * up, [..., I], from float32 projections."""
    return round_to(jax.nn.silu(gate) * up, dtype)
