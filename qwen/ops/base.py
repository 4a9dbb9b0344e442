"""Operations of a decoder layer; platforms override the ones that they compute faster."""

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
"""Update in float32 and residual stream after the update, [..., H] each. The update may be None if
`keep_update` is false."""


class Ops(ABC):
    """Operations on rows with several samples; `qwen.layers` defines the shape letters.

    Attributes:
        name: name of the set of operations.
        tiles_kernels: whether loading must tile the kernels of products with `tile_kernel`.
        delta_chunk: number of slots per chunk of a delta network in bfloat16; a divisor of 128.
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

        A token attends to itself and to earlier tokens of its sample. Scores and softmax are
        float32. The result at a padding slot is arbitrary but finite.

        Args:
            qkv: queries, keys and values.
            segment_ids: [R, L] int32, 1, 2, ... for samples, 0 for padding.
            positions: [R, L] int32, the position of each token in its sample.
            window: maximum number of tokens that a query sees, including its own; None for no
                limit.

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
        """Project the heads of a mixer and add the update to the residual stream x [R, L, H]."""
        update = mixer.output(heads)
        return update, add_update(x, update)

    def add_mlp(self, x: jax.Array, norm: RMSNorm, mlp: MLP, keep_update: bool) -> Updated:
        """Normalize the residual stream x [R, L, H], apply the MLP and add the update to x."""
        update = mlp(norm(x))
        return update, add_update(x, update)

    def mlps_of_groups(
        self, x: jax.Array, sizes: jax.Array, kernels: tuple[jax.Array, jax.Array, jax.Array]
    ) -> jax.Array:
        """Apply the MLP of each group of rows.

        Args:
            x: [T, H], rows sorted by group.
            sizes: [E] int32, number of rows of each group; the sum may be less than T.
            kernels: gate and up kernels [E, H, I] and down kernels [E, I, H].

        Returns:
            [T, H] float32; rows that belong to no group are arbitrary.
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
        """Tile a kernel [depth, columns] as [columns / 32, depth / 32, 1024]."""
        raise NotImplementedError(f"{self.name} ops use untiled kernels")
