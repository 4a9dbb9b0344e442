"""The gated MLP, SwiGLU (https://arxiv.org/abs/2002.05202)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from qwen.config import ModelConfig
from qwen.layers.precision import project, round_to
from qwen.mesh import MODEL_AXIS, sum_over


class MLP(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype) -> None:
        hidden, intermediate = config.hidden_size, config.intermediate_size
        self.gate_kernel = nnx.Param(jnp.zeros((hidden, intermediate), dtype))
        self.up_kernel = nnx.Param(jnp.zeros((hidden, intermediate), dtype))
        self.down_kernel = nnx.Param(jnp.zeros((intermediate, hidden), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the update of normalized x [..., H], in float32."""
        gate, up = project(x, self.gate_kernel[...]), project(x, self.up_kernel[...])
        gated = round_to(jax.nn.silu(gate) * up, x.dtype)  # [..., I]
        return sum_over(project(gated, self.down_kernel[...]), MODEL_AXIS)
