"""Qwen3.5, dense and with a mixture of experts: the text part of multimodal checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from qwen.config import DeltaConfig, ExpertsConfig, ModelConfig
from qwen.families.parameters import (
    Parameters,
    ParameterSource,
    attention,
    delta,
    mlp,
    norm,
    router,
)


def read_config(fields: Mapping[str, Any]) -> ModelConfig:
    rope = fields["rope_parameters"]
    return ModelConfig(
        vocab_size=fields["vocab_size"], hidden_size=fields["hidden_size"],
        intermediate_size=fields.get("intermediate_size", 1),
        num_hidden_layers=fields["num_hidden_layers"],
        num_attention_heads=fields["num_attention_heads"],
        num_key_value_heads=fields["num_key_value_heads"], head_dim=fields["head_dim"],
        rms_norm_eps=fields["rms_norm_eps"], rope_theta=rope["rope_theta"],
        tie_word_embeddings=fields.get("tie_word_embeddings", False),
        attention_bias=False, qk_norm=True, output_gate=True, zero_centered_norms=True,
        rotary_dim=int(fields["head_dim"] * rope.get("partial_rotary_factor", 0.25)),
        layer_types=tuple(fields["layer_types"]),
        delta=DeltaConfig(fields["linear_num_key_heads"], fields["linear_num_value_heads"], fields["linear_key_head_dim"], fields["linear_value_head_dim"], fields["linear_conv_kernel_dim"]),
        experts=ExpertsConfig(fields["num_experts"], fields["num_experts_per_tok"], fields["moe_intermediate_size"], True, fields["shared_expert_intermediate_size"]) if "num_experts" in fields else None,
    )


def layer_parameters(config: ModelConfig, layer: int) -> Parameters:
    """The source of every parameter of a layer."""
    hidden, kind = config.hidden_size, config.kind(layer)
    mixer = attention(config)
    if kind.mixer == "delta" and config.delta is not None:
        mixer = delta(config.delta, hidden)
    if kind.experts and config.experts is not None:
        after = {**router(config.experts, hidden), **_experts(config.experts, hidden)}
    else:
        after = {**mlp("mlp", "mlp", hidden, config.intermediate_size)}
    return {
        **norm("attention_norm", "input_layernorm", hidden, config),
        **mixer,
        **norm("mlp_norm", "post_attention_layernorm", hidden, config),
        **after,
    }


def _experts(config: ExpertsConfig, hidden: int) -> Parameters:
    """All experts in one tensor: gates and updates [E, 2 * I, H], outputs [E, H, I]."""
    experts, size = config.num_experts, config.intermediate_size
    first = (("mlp.experts.gate_up_proj", (experts, 2 * size, hidden)),)
    last = (("mlp.experts.down_proj", (experts, hidden, size)),)
    return {
        ("experts", "gate_kernel"): ParameterSource(first, partial(_part, slice(size)), 0),
        ("experts", "up_kernel"): ParameterSource(first, partial(_part, slice(size, None)), 0),
        ("experts", "down_kernel"): ParameterSource(last, partial(_part, slice(None)), 0),
    }


def _part(rows: slice, tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """Some rows of each expert, [E, out, in] to [E, in, some of out]."""
    return tensors[0][:, rows].swapaxes(1, 2)
