"""The operations that a decoder layer is made of; a platform replaces those it computes faster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import jax
import jax.numpy as jnp

from qwen.config import DELTA_CHUNK
from qwen.layers.attention import Attention, QueriesKeysValues
from qwen.layers.delta import GatedDeltaNet
from qwen.layers.mlp import MLP, gated
from qwen.layers.norm import RMSNorm
from qwen.layers.precision import add_update, precision_of
from qwen.layers.rope import Rotary
from qwen.ops import OpsName

Updated = tuple[jax.Array | None, jax.Array]
"""An update of the residual stream in float32, and the stream after it; [..., H] each. The update
is None if it was not asked for and never existed by itself."""


class Ops(ABC):
    """Operations on rows that hold several samples; shapes are those of `qwen.layers`.

    Attributes:
        name: of the set of operations.
        tiles_kernels: whether kernels of products must be laid out by `tile_kernel` when loaded.
        delta_chunk: slots of a chunk of a delta network in bfloat16, which divide 128.
    """

    name: ClassVar[OpsName]
    tiles_kernels: ClassVar[bool] = False
    delta_chunk: ClassVar[int] = DELTA_CHUNK

    @abstractmethod
    def attend(
        self,
        qkv: QueriesKeysValues,
        segment_ids: jax.Array,
        positions: jax.Array,
        window: int | None,
    ) -> jax.Array:
        """Compute causal grouped-query attention within the samples of each row.

        A token attends to itself and to earlier tokens of its sample. Scores and their softmax are
        float32. The result at a padding slot is finite and otherwise arbitrary.

        Args:
            qkv: queries, keys and values.
            segment_ids: [R, L] int32, 1, 2, ... for samples, 0 for padding.
            positions: [R, L] int32, of each token in its sample.
            window: the tokens that a query sees at most, itself included; None for no limit.

        Returns:
            [R, L, K, G, D], in the dtype of the queries.
        """

    def queries_keys_values(
        self, x: jax.Array, norm: RMSNorm, attention: Attention, rotary: Rotary
    ) -> QueriesKeysValues:
        """Normalize the residual stream x [R, L, H], project it, and rotate queries and keys."""
        return attention.queries_keys_values(norm(x), rotary)

    def add_heads(
        self, x: jax.Array, heads: jax.Array, mixer: Attention | GatedDeltaNet, keep_update: bool
    ) -> Updated:
        """Project the heads of a mixer and add them to the residual stream x."""
        update = mixer.output(heads)
        return update, add_update(x, update)

    def add_mlp(self, x: jax.Array, norm: RMSNorm, mlp: MLP, keep_update: bool) -> Updated:
        """Add the MLP of the normalized residual stream x [R, L, H] to it."""
        update = mlp(norm(x))
        return update, add_update(x, update)

    def mlps_of_groups(
        self, x: jax.Array, sizes: jax.Array, kernels: tuple[jax.Array, jax.Array, jax.Array]
    ) -> jax.Array:
        """Apply the MLP of each group of rows.

        Args:
            x: [T, H], the rows of the first group, then of the second, and so on.
            sizes: [E] int32, the rows of each group. Their sum may be less than T.
            kernels: of gates and updates [E, H, I], and of the output [E, I, H].

        Returns:
            [T, H] float32; arbitrary for rows that belong to no group.
        """
        gate, up, down = kernels

        def product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
            return jax.lax.ragged_dot(
                rows,
                kernel,
                sizes,
                precision=precision_of(rows),
                preferred_element_type=jnp.float32,
            )

        return product(gated(product(x, gate), product(x, up), x.dtype), down)

    def tile_kernel(self, kernel: jax.Array) -> jax.Array:
        """Lay out a kernel [depth, columns] as [columns / 32, depth / 32, 1024]."""
        raise NotImplementedError(f"{self.name} ops use kernels as they are")
