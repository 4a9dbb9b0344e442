"""Mixture of experts: a router gives each token to a few of many MLPs.

Experts are split over the mesh's model axis. No token is dropped. Further shape letters: E experts,
P experts of each token, I intermediate, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from qwen.config import ExpertsConfig
from qwen.layers.mlp import MLP
from qwen.layers.precision import project
from qwen.mesh import MODEL_AXIS, sum_over

if TYPE_CHECKING:
    from qwen.ops.base import Ops


class Experts(nnx.Module):
    def __init__(self, config: ExpertsConfig, hidden: int, dtype: jnp.dtype) -> None:
        experts, intermediate = config.num_experts, config.intermediate_size
        self.per_token, self.normalized = config.num_experts_per_tok, config.norm_topk_prob
        self.router_kernel = nnx.Param(jnp.zeros((hidden, experts), dtype))
        self.gate_kernel = nnx.Param(jnp.zeros((experts, hidden, intermediate), dtype))
        self.up_kernel = nnx.Param(jnp.zeros((experts, hidden, intermediate), dtype))
        self.down_kernel = nnx.Param(jnp.zeros((experts, intermediate, hidden), dtype))
        shared = config.shared_intermediate_size
        self.shared = MLP(hidden, shared, dtype) if shared else None
        self.shared_gate_kernel = nnx.Param(jnp.zeros((hidden, 1), dtype)) if shared else None

    def router_logits(self, x: jax.Array) -> jax.Array:
        """Score the experts for normalized x [..., H]: [..., E] float32."""
        return project(x, self.router_kernel[...])

    def __call__(self, x: jax.Array, logits: jax.Array, ops: Ops) -> jax.Array:
        """Compute the update of normalized x [R, L, H] with `router_logits`, in float32."""
        tokens, experts = x.reshape(-1, x.shape[-1]), logits.shape[-1]
        shares, chosen = jax.lax.top_k(
            jax.nn.softmax(logits.reshape(-1, experts)), self.per_token
        )  # [T, P]
        if self.normalized:
            shares /= shares.sum(-1, keepdims=True)
        # This device's experts are 0, 1, ...; all others count as one more, without a kernel.
        present = self.gate_kernel.shape[0]
        chosen = chosen - jax.lax.axis_index(MODEL_AXIS) * present
        chosen = jnp.where((chosen >= 0) & (chosen < present), chosen, present).reshape(-1)
        order = jnp.argsort(chosen, stable=True)
        sizes = jnp.bincount(chosen, length=present)
        kernels = (self.gate_kernel[...], self.up_kernel[...], self.down_kernel[...])
        outputs = ops.mlps_of_groups(tokens[order // self.per_token], sizes, kernels)
        outputs = jnp.where((jnp.arange(len(order)) < sizes.sum())[:, None], outputs, 0)
        outputs = outputs[jnp.argsort(order)].reshape(*shares.shape, -1)  # [T, P, H]
        update = sum_over((outputs * shares[..., None]).sum(1), MODEL_AXIS).reshape(x.shape)
        if self.shared is not None and self.shared_gate_kernel is not None:
            gate = jax.nn.sigmoid(project(x, self.shared_gate_kernel[...]))
            update += gate * self.shared(x)
        return update
