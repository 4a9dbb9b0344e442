"""Operations for NVIDIA GPUs, with cuDNN's attention in half precision."""

from __future__ import annotations

import jax

from qwen.layers.attention import QueriesKeysValues
from qwen.ops.base import Ops


class CudnnOps(Ops):
    """Operations with cuDNN's attention."""

    name = "cudnn"

    def attend(
        self,
        qkv: QueriesKeysValues,
        segment_ids: jax.Array,
        positions: jax.Array,
        window: int | None,
    ) -> jax.Array:
        """Compute attention with cuDNN's fused kernel.

        The segment mask becomes a bias [R, 1, L, L] in the dtype of the queries, so the memory of a
        step grows with the square of the row length.
        """
        query, key, value = qkv
        rows, length, heads, groups, head_dim = query.shape
        same_segment = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        out = jax.nn.dot_product_attention(
            query.reshape(rows, length, heads * groups, head_dim),
            key,
            value,
            mask=same_segment,
            is_causal=True,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )
        return out.reshape(query.shape)
