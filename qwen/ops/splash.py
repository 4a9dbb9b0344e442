"""Operations for TPUs, with JAX's Pallas kernel for attention."""

from __future__ import annotations

import math
import operator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen.layers.attention import QueriesKeysValues
from qwen.layers.precision import round_to
from qwen.ops.base import Ops

SPLASH_BLOCK = 512
"""Slots per block of the kernel, enough to keep the TPU's matrix unit busy."""


class SplashOps(Ops):
    """Operations with splash attention.

    Attributes:
        interpret: whether to interpret the kernel, as platforms other than TPUs require.
    """

    name = "splash"
    delta_chunk = 128  # Fills the matrix and vector units.

    def __init__(self, interpret: bool = False) -> None:
        self.interpret = interpret

    def attend(
        self,
        qkv: QueriesKeysValues,
        segment_ids: jax.Array,
        positions: jax.Array,
        window: int | None,
    ) -> jax.Array:
        """Compute attention with splash attention; the length must be a multiple of 128.

        Each call tells the kernel which key blocks a query block may see, so the kernel skips
        blocks of other samples and later blocks. The kernel processes all rows as one sequence.
        """
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_kernel as splash,
        )
        from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import (
            MaskInfo,
        )

        query, key, value = qkv
        rows, length, heads, groups, head_dim = query.shape
        slots, block = rows * length, math.gcd(length, SPLASH_BLOCK)
        per_row = length // block
        own = jnp.arange(slots // block)
        reach = positions.reshape(-1)[::block]
        if window is not None:
            reach = jnp.minimum(reach, window - 1)
        first = own - (reach + block - 1) // block
        wanted = (own // per_row * per_row)[:, None] + jnp.arange(per_row)
        visible = (wanted >= first[:, None]) & (wanted <= own[:, None])
        # The compiler computes the projections in this layout; any other layout requires copies.
        layout = splash.QKVLayout.SEQ_MINOR if rows == 1 else splash.QKVLayout.HEAD_DIM_MINOR
        attend = splash.SplashAttentionKernel(
            MaskInfo(
                # Invisible blocks have the index of the next or last visible block, so the kernel
                # does not fetch them.
                data_next=jnp.clip(wanted, first[:, None], own[:, None])[None],
                block_mask=visible.astype(jnp.int32)[None],
                mask_next=None,
                partial_mask_blocks=None,
                q_sequence=np.arange(slots, dtype=np.int32),
            ),
            dq_mask_info=None,
            dkv_mask_info=None,
            is_mqa=False,
            block_sizes=splash.BlockSizes(
                block_q=block, block_kv=block, q_layout=layout, k_layout=layout, v_layout=layout
            ),
            save_residuals=False,
            mask_value=splash.DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=None,
            residual_checkpoint_name=None,
            mask_function=operator.ge if window is None else partial(_within, window),
            interpret=self.interpret,
        )
        scaled = round_to(query.astype(jnp.float32) / math.sqrt(head_dim), query.dtype)
        q = scaled.reshape(slots, heads * groups, head_dim).transpose(1, 0, 2)
        k, v = (x.reshape(slots, heads, head_dim).transpose(1, 0, 2) for x in (key, value))
        segments = segment_ids.reshape(slots)
        with jax.default_matmul_precision("highest" if query.dtype == jnp.float32 else "default"):
            out = attend(q, k, v, splash.SegmentIds(segments, segments))
        assert isinstance(out, jax.Array)
        return out.reshape(heads, groups, rows, length, head_dim).transpose(2, 3, 0, 1, 4)


def _within(window: int, query: Any, key: Any) -> Any:
    return (query >= key) & (query - key < window)
