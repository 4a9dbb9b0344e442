"""Qwen3.5, dense and with a mixture of experts: the text part of a multimodal model."""

from __future__ import annotations

from qwen.config import FULL_ATTENTION, LINEAR_ATTENTION, DeltaConfig, ModelConfig
from qwen.families.common import read_decoder, read_experts, read_layer_types
from qwen.families.config_fields import ConfigFields
from qwen.families.tensor_names import TensorKind

LEFT_OUT = (
    TensorKind(r"(model\.)?visual\..+", "the vision tower"),
    TensorKind(r"mtp\..+", "the multi-token prediction layers"),
)
"""Tensors that are not part of the text model."""

_OF_IMAGES = (
    *("vision_config", "image_token_id", "video_token_id"),
    *("vision_start_token_id", "vision_end_token_id"),
)
_CLASS_PREFIX = "Qwen3_5(Moe)?(Text)?"


def read_config(fields: ConfigFields) -> ModelConfig:
    """Read the fields of a `config.json`, which may have the text model in `text_config`.

    Raises:
        ModelConfigError: if a field is missing, wrong or unsupported. The message names the field.
    """
    text = fields.nested("text_config")
    if text is None:
        return _read_text(fields, fields.get("model_type"))
    for name in _OF_IMAGES:
        fields.get(name)
    fields.check_classes(f"{_CLASS_PREFIX}(ForConditionalGeneration)?")
    tied = fields.get("tie_word_embeddings")
    config = _read_text(text, fields.get("model_type"), tied)
    text.refuse_others()
    return config


def _read_text(fields: ConfigFields, model_type: str, tied: bool | None = None) -> ModelConfig:
    settings = read_decoder(fields, _CLASS_PREFIX, default_rotary_factor=0.25, head_dim=256)
    fields.one_of("attention_bias", False, False, None)
    fields.one_of("attn_output_gate", True, True, None)
    for name in ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype"):
        fields.get(name)  # The state is always float32.
    if tied is not None:
        settings["tie_word_embeddings"] = tied
    if "moe" in model_type:
        shared = fields.positive("shared_expert_intermediate_size")
        settings["experts"] = read_experts(fields, norm_topk_prob=True, shared=shared)
    return ModelConfig(
        **settings | {"model_type": model_type},
        attention_bias=False,
        qk_norm=True,
        output_gate=True,
        zero_centered_norms=True,
        layer_types=_read_layer_types(fields, settings["num_hidden_layers"]),
        delta=DeltaConfig(
            num_key_heads=fields.positive("linear_num_key_heads", 16),
            num_value_heads=fields.positive("linear_num_value_heads", 32),
            key_head_dim=fields.positive("linear_key_head_dim", 128),
            value_head_dim=fields.positive("linear_value_head_dim", 128),
            conv_kernel_dim=fields.positive("linear_conv_kernel_dim", 4),
        ),
    )


def _read_layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    every = fields.positive("full_attention_interval", 4)
    types = read_layer_types(fields, num_layers, FULL_ATTENTION, LINEAR_ATTENTION)
    return types or tuple(
        LINEAR_ATTENTION if (layer + 1) % every else FULL_ATTENTION for layer in range(num_layers)
    )
