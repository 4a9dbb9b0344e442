"""Qwen2 and Qwen2.5, dense. Llama and Mistral differ in their settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen.config import ModelConfig, ModelConfigError, check_value
from qwen.families.parameters import Parameters, attention, mlp, norm


def layer_parameters(config: ModelConfig, layer: int) -> Parameters:
    """The source of every parameter of a layer."""
    hidden = config.hidden_size
    return {
        **norm("attention_norm", "input_layernorm", hidden, config),
        **attention(config),
        **norm("mlp_norm", "post_attention_layernorm", hidden, config),
        **mlp("mlp", "mlp", hidden, config.intermediate_size),
    }


def read_config(fields: Mapping[str, Any]) -> ModelConfig:
    """Read a parsed `config.json`.

    Both spellings of the RoPE settings are accepted: a top-level `rope_theta` (published Qwen2.5
    checkpoints) and `rope_parameters` (written by transformers 5).

    Raises:
      ModelConfigError: naming the field that is missing, wrong or unsupported.
    """
    _check_supported(fields)
    for name in ("hidden_size", "num_attention_heads"):
        check_value(name, _required(fields, name))
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    return ModelConfig(
        vocab_size=_required(fields, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_required(fields, "intermediate_size"),
        num_hidden_layers=_required(fields, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or hidden // heads,
        max_position_embeddings=fields.get("max_position_embeddings", 32_768),
        rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta", fields.get("rope_theta", 10_000.0)),
        tie_word_embeddings=fields.get("tie_word_embeddings", False),
    )


def _required(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise ModelConfigError(f"the field {name!r} is missing")
    return fields[name]


def _check_supported(fields: Mapping[str, Any]) -> None:
    """Check the fields that change the computation to one that the layers do not have."""

    def supported(name: str, value: Any, *allowed: Any) -> None:
        if value not in allowed:
            raise ModelConfigError(
                f"{name}={value!r} is not supported; supported: " + ", ".join(map(repr, allowed))
            )

    supported("hidden_act", fields.get("hidden_act", "silu"), "silu")
    supported("use_sliding_window", fields.get("use_sliding_window", False), False, None)
    for layer_type in fields.get("layer_types") or ():
        supported("layer_types", layer_type, "full_attention")
    for name in ("rope_parameters", "rope_scaling"):
        settings = fields.get(name) or {}
        if not isinstance(settings, Mapping):
            raise ModelConfigError(f"{name} must be an object, got {settings!r}")
        rope_type = settings.get("rope_type", settings.get("type", "default"))
        supported(f"{name}.rope_type", rope_type, "default")
        for key in settings:
            supported(f"a key of {name}", key, "rope_theta", "rope_type", "type")
