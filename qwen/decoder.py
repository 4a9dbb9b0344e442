"""The decoder in Flax nnx, up to the residual stream after a layer, without final norm and LM head.

Semantics follow the `modeling_*.py` files of transformers. `qwen.ops` decides how a platform
computes an operation. `qwen.layers` defines the shape letters.
"""

from __future__ import annotations

from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx

from activation_dataset.sites import HookPoint
from qwen.config import LayerKind, ModelConfig
from qwen.layers.attention import Attention, attention_of_slots
from qwen.layers.delta import GatedDeltaNet
from qwen.layers.experts import Experts
from qwen.layers.mlp import MLP
from qwen.layers.norm import RMSNorm
from qwen.layers.pooling import gather_slots
from qwen.layers.precision import add_update
from qwen.layers.rope import Rotary
from qwen.mesh import MODEL_AXIS, gather_over
from qwen.ops.base import Ops

HookValues = dict[HookPoint, jax.Array]
"""Values of one layer by hook point, [R, L, width]. The residual stream and the inputs of attention
have the model's dtype; updates and router logits are float32. XLA does not compute values that no
program returns."""


class DecoderLayer(nnx.Module):
    """One layer: a mixer, then an MLP or experts, each with a norm before it and a residual sum."""

    def __init__(self, config: ModelConfig, kind: LayerKind, dtype: jnp.dtype) -> None:
        hidden = config.hidden_size
        self.kind = kind
        self.attention_norm = RMSNorm.of(config, hidden, dtype)
        if kind.mixer == "delta" and config.delta is not None:
            self.delta = GatedDeltaNet(config.delta, hidden, config.rms_norm_eps, dtype)
        else:
            self.attention = Attention(config, dtype)
        self.mlp_norm = RMSNorm.of(config, hidden, dtype)
        if kind.experts and config.experts is not None:
            self.experts = Experts(config.experts, hidden, dtype)
        else:
            self.mlp = MLP(hidden, config.intermediate_size, dtype)

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
            x: [R, L, H], in the model's dtype.
            rotary: cosines and sines of the positions.
            segment_ids: [R, L] int32, as in `Ops.attend`.
            positions: [R, L] int32, as in `Ops.attend`.
            ops: operations of the platform.
            hook_points: hook points to return in addition to `resid_post`, if the layer has them.
                The result may contain others.
            slots: [R, S] int32. If given, the result contains only these slots, [R, S, width]. Keys
                and values of attention, and the state of a delta network, are computed for the
                whole row; all later values only at the slots.

        Returns:
            Values by hook point.
        """
        values: HookValues = {}
        if self.kind.mixer == "delta":
            mixer: Attention | GatedDeltaNet = self.delta
            heads = self.delta.mixed(
                self.attention_norm(x), segment_ids, positions, ops.delta_chunk
            )
            if slots is not None:
                heads = gather_slots(heads, slots)
        else:
            mixer, window = self.attention, self.kind.window
            q, k, v = ops.queries_keys_values(x, self.attention_norm, self.attention, rotary)
            if slots is None:
                heads = ops.attend((q, k, v), segment_ids, positions, window)
            else:
                q = gather_slots(q, slots)
                heads = attention_of_slots(slots, (q, k, v), segment_ids, window)
            captured: HookValues = {"q": q, "k": k, "v": v}
            for point, value in captured.items():
                if point in hook_points:
                    at = value if slots is None or point == "q" else gather_slots(value, slots)
                    values[point] = _flat(at)
        if slots is not None:
            x = gather_slots(x, slots)
        heads = mixer.gated(heads, self.attention_norm(x))
        if "z" in hook_points:
            values["z"] = _flat(heads)
        attn_out, resid_mid = ops.add_heads(x, heads, mixer, keep_update="attn_out" in hook_points)
        mlp_in = self.mlp_norm(resid_mid)
        mlp_out: jax.Array | None
        if self.kind.experts:
            logits = self.experts.router_logits(mlp_in)
            mlp_out = self.experts(mlp_in, logits, ops.mlps_of_groups)
            values["router_logits"] = logits
            resid_post = add_update(resid_mid, mlp_out)
        else:
            mlp_out, resid_post = ops.add_mlp(
                resid_mid, self.mlp_norm, self.mlp, keep_update="mlp_out" in hook_points
            )
        if attn_out is not None:
            values["attn_out"] = attn_out
        if mlp_out is not None:
            values["mlp_out"] = mlp_out
        return values | {
            "resid_pre": x,
            "resid_mid": resid_mid,
            "mlp_in": mlp_in,
            "resid_post": resid_post,
        }


class Decoder(nnx.Module):
    """The embedding and the layers up to the highest captured one."""

    def __init__(self, config: ModelConfig, num_layers: int, dtype: jnp.dtype) -> None:
        self.embedding = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))
        self.layers = nnx.List(
            [DecoderLayer(config, config.kind(layer), dtype) for layer in range(num_layers)]
        )


def _flat(heads: jax.Array) -> jax.Array:
    """Flatten [R, L, heads of this device..., D] to [R, L, all heads * D]."""
    flat = heads.reshape(*heads.shape[:2], -1)
    return gather_over(flat, MODEL_AXIS)
