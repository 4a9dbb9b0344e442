"""Qwen3, dense."""
from __future__ import annotations
from collections.abc import Mapping
from typing import Any
from qwen.config import ModelConfig, ExpertsConfig


def read_config(fields: Mapping[str, Any]) -> ModelConfig:
    rope = fields.get("rope_parameters") or {}
    return ModelConfig(
        vocab_size=fields["vocab_size"], hidden_size=fields["hidden_size"],
        intermediate_size=fields.get("intermediate_size", 1),
        num_hidden_layers=fields["num_hidden_layers"],
        num_attention_heads=fields["num_attention_heads"],
        num_key_value_heads=fields["num_key_value_heads"], head_dim=fields["head_dim"],
        rms_norm_eps=fields["rms_norm_eps"], rope_theta=rope["rope_theta"],
        tie_word_embeddings=fields.get("tie_word_embeddings", False),
        attention_bias=False, qk_norm=True,
        experts=ExpertsConfig(fields["num_local_experts"], fields["num_experts_per_tok"], fields["moe_intermediate_size"], fields["norm_topk_prob"]) if "num_local_experts" in fields else None,
        dense_layers=tuple(fields.get("mlp_only_layers") or ()),
    )
