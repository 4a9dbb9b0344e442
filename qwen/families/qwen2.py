"""Qwen2 and Qwen2.5, dense: `config.json`, tensors and parameters."""

from __future__ import annotations

from qwen.config import ModelConfig
from qwen.families.common import read_decoder, read_sliding_window
from qwen.families.config_fields import ConfigFields
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


def read_config(fields: ConfigFields) -> ModelConfig:
    """Read a `config.json`. Raises ModelConfigError, naming the field."""
    settings = read_decoder(fields, "Qwen2")
    fields.one_of("qkv_bias", True, True, None)
    window = read_sliding_window(fields, settings["num_hidden_layers"])
    return ModelConfig(**settings, **window, model_type="qwen2")
