"""Mixture of experts: a router sends each token to a few of many MLPs.

Experts are split over the mesh's model axis. No token is dropped. Additional shape letters: E
experts, P experts per token, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from qwen.config import ExpertsConfig
from qwen.layers.mlp import MLP
from qwen.layers.precision import project
from qwen.mesh import MODEL_AXIS, sum_over

MlpsOfGroups = Callable[[jax.Array, jax.Array, tuple[jax.Array, jax.Array, jax.Array]], jax.Array]
"""Type of `Ops.mlps_of_groups`."""

ROWS, SPARE = 128, 1.25
"""A device processes `SPARE` times its share of all token-expert pairs per round, rounded up to a
multiple of `ROWS`. One round is enough unless the router prefers the device's experts."""


class Experts(nnx.Module):
    """Router, experts, and the shared expert with its gate if present."""

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
        """Return the router's scores for normalized x [..., H], [..., E] float32."""
        return project(x, self.router_kernel[...])

    def __call__(self, x: jax.Array, logits: jax.Array, mlps_of_groups: MlpsOfGroups) -> jax.Array:
        """Compute the update of normalized x [R, L, H] from its `router_logits`, in float32."""
        tokens, experts = x.reshape(-1, x.shape[-1]), logits.shape[-1]
        shares, chosen = jax.lax.top_k(
            jax.nn.softmax(logits.reshape(-1, experts)), self.per_token
        )  # [T, P]
        if self.normalized:
            shares /= shares.sum(-1, keepdims=True)
        # Number the experts of this device from 0. All other experts share the next number, which
        # has no kernel.
        present = self.gate_kernel.shape[0]
        chosen = chosen - jax.lax.axis_index(MODEL_AXIS) * present
        chosen = jnp.where((chosen >= 0) & (chosen < present), chosen, present).reshape(-1)
        order = jnp.argsort(chosen, stable=True)
        ends = jnp.cumsum(jnp.bincount(chosen, length=present))
        kernels = (self.gate_kernel[...], self.up_kernel[...], self.down_kernel[...])
        block = _block(len(order), jax.lax.axis_size(MODEL_AXIS))
        padded, places = jnp.pad(order, (0, block)), jnp.argsort(order)

        def add_block(index: jax.Array, update: jax.Array) -> jax.Array:
            start = index * block
            pairs = jax.lax.dynamic_slice_in_dim(padded, start, block)
            within = jnp.clip(ends - start, 0, block)
            outputs = mlps_of_groups(
                tokens[pairs // self.per_token], jnp.diff(within, prepend=0), kernels
            )
            outputs *= shares.reshape(-1)[pairs][:, None]
            outputs = jnp.where((jnp.arange(block) < within[-1])[:, None], outputs, 0)
            return _add_rows(update, outputs, pairs // self.per_token, places - start)

        update = jnp.zeros(tokens.shape, jnp.float32)
        update = jax.lax.fori_loop(0, -(-ends[-1] // block), add_block, update)
        update = sum_over(update, MODEL_AXIS, x.dtype).reshape(x.shape)
        if self.shared is not None and self.shared_gate_kernel is not None:
            gate = jax.nn.sigmoid(project(x, self.shared_gate_kernel[...]))
            update += gate * self.shared(x)
        return update


def _block(pairs: int, devices: int) -> int:
    """Return the number of token-expert pairs that a device processes per round."""
    return min(pairs, math.ceil(SPARE * pairs / devices / ROWS) * ROWS)


def _add_rows(
    update: jax.Array, rows: jax.Array, tokens: jax.Array, places: jax.Array
) -> jax.Array:
    """Add the rows of token-expert pairs to the updates of their tokens.

    Args:
        update: [T, H] float32.
        rows: [B, H] float32.
        tokens: [B], the token of each row.
        places: [T * P], the row of each pair; values outside 0..B - 1 mark pairs without a row.
    """

    def scatter() -> jax.Array:
        return update.at[tokens].add(rows)

    def gather() -> jax.Array:
        mine = (places >= 0) & (places < len(rows))
        found = jnp.where(mine[:, None], rows[jnp.clip(places, 0, len(rows) - 1)], 0)
        return update + found.reshape(len(update), -1, rows.shape[-1]).sum(1)

    # A GPU scatters in arbitrary order, and float32 sums depend on the order.
    return jax.lax.platform_dependent(tpu=scatter, default=gather)
