"""Qwen2 and Qwen2.5, dense: `config.json`, tensors and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen.config import ModelConfig, ModelConfigError, check_value
from qwen.families.parameters import (
    ParameterSource,
    joined_qkv,
    split_heads,
    transposed,
    unchanged,
)

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

EMBEDDING = ParameterSource(("model.embed_tokens.weight",), unchanged)

LAYER_PARAMETERS: dict[tuple[str, ...], ParameterSource] = {
    ("attention_norm", "scale"): ParameterSource(("input_layernorm.weight",), unchanged),
    ("attention", "qkv_kernel"): ParameterSource(
        tuple(f"{name}.weight" for name in _QKV), joined_qkv, split_axis=1, contracted=1
    ),
    ("attention", "qkv_bias"): ParameterSource(
        tuple(f"{name}.bias" for name in _QKV), joined_qkv, split_axis=0
    ),
    ("attention", "out_kernel"): ParameterSource(
        ("self_attn.o_proj.weight",), split_heads, split_axis=0, contracted=3
    ),
    ("mlp_norm", "scale"): ParameterSource(("post_attention_layernorm.weight",), unchanged),
    ("mlp", "gate_kernel"): ParameterSource(
        ("mlp.gate_proj.weight",), transposed, split_axis=1, contracted=1
    ),
    ("mlp", "up_kernel"): ParameterSource(
        ("mlp.up_proj.weight",), transposed, split_axis=1, contracted=1
    ),
    ("mlp", "down_kernel"): ParameterSource(
        ("mlp.down_proj.weight",), transposed, split_axis=0, contracted=1
    ),
}
"""Every parameter of a layer by its path; tensors are named without `model.layers.N.`"""


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint, with its shape as PyTorch lays it out."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for index in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


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
