"""The decoder in Flax nnx, up to the residual stream after a layer: no final norm, no LM head.

Semantics follow `modeling_qwen2.py` of transformers. How a platform computes an operation is the
business of `qwen.ops`. Shapes are those of `qwen.layers`.
"""

from __future__ import annotations

from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx

from activation_dataset.sites import HookPoint
from qwen.config import ModelConfig
from qwen.layers.attention import Attention, attention_of_slots
from qwen.layers.mlp import MLP
from qwen.layers.norm import RMSNorm
from qwen.layers.pooling import gather_slots
from qwen.layers.rope import Rotary
from qwen.ops.base import Ops

HookValues = dict[HookPoint, jax.Array]
"""Values of one layer by hook point, [R, L, H]: the residual stream in its dtype, updates in
float32. XLA does not compute values that no program returns."""


class DecoderLayer(nnx.Module):
    def __init__(self, config: ModelConfig, dtype: jnp.dtype) -> None:
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.attention = Attention(config, dtype)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = MLP(config, dtype)

    def __call__(
        self,
        x: jax.Array,
        rotary: Rotary,
        segment_ids: jax.Array,
        positions: jax.Array,
        ops: Ops,
        hook_points: Collection[HookPoint],
        slots: jax.Array | None = None,
    ) -> HookValues:
        """Run the layer on the residual stream x [R, L, H].

        Args:
          segment_ids, positions: as in `Ops.attend`.
          hook_points: those that the result must have besides `resid_post`; it may have more.
          slots: [R, S] int32; if given, values are those of these slots alone, [R, S, H]. Keys and
            values of attention are computed for the whole row, everything after them at the slots.
        """
        q, k, v = ops.queries_keys_values(x, self.attention_norm, self.attention, rotary)
        if slots is None:
            attended = ops.attend((q, k, v), segment_ids, positions)
        else:
            attended = attention_of_slots(slots, (gather_slots(q, slots), k, v), segment_ids)
            x = gather_slots(x, slots)
        attn_out, resid_mid = ops.add_attention(
            x, attended, self.attention, keep_update="attn_out" in hook_points
        )
        mlp_out, resid_post = ops.add_mlp(
            resid_mid, self.mlp_norm, self.mlp, keep_update="mlp_out" in hook_points
        )
        values: dict[HookPoint, jax.Array | None] = {
            "resid_pre": x,
            "attn_out": attn_out,
            "resid_mid": resid_mid,
            "mlp_out": mlp_out,
            "resid_post": resid_post,
        }
        return {point: value for point, value in values.items() if value is not None}


class Decoder(nnx.Module):
    """The embedding and the layers, up to the last one that is needed."""

    def __init__(self, config: ModelConfig, num_layers: int, dtype: jnp.dtype) -> None:
        self.embedding = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))
        self.layers = nnx.List([DecoderLayer(config, dtype) for _ in range(num_layers)])
