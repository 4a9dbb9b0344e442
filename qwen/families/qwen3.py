"""Qwen3, dense and with a mixture of experts."""

from __future__ import annotations

from typing import Any

from qwen.config import ModelConfig
from qwen.families.common import check_list, read_decoder, read_experts, read_sliding_window
from qwen.families.config_fields import ConfigFields


def read_config(fields: ConfigFields) -> ModelConfig:
    """Read the fields of a `config.json`.

    Raises:
        ModelConfigError: if a field is missing, wrong or unsupported. The message names the field.
    """
    dense = fields.get("model_type") == "qwen3"
    settings = read_decoder(fields, "Qwen3(Moe)?", head_dim=128 if dense else None)
    fields.one_of("attention_bias", False, False, None)
    num_layers = settings["num_hidden_layers"]
    if dense:
        settings |= read_sliding_window(fields, num_layers)
    else:
        fields.one_of("use_sliding_window", False, False, None)
        for name in ("sliding_window", "max_window_layers"):
            fields.get(name)  # No effect without `use_sliding_window`.
        settings |= _read_sparse_layers(fields, num_layers)
    return ModelConfig(**settings, attention_bias=False, qk_norm=True)


def _read_sparse_layers(fields: ConfigFields, num_layers: int) -> dict[str, Any]:
    """Return the arguments of `ModelConfig` for a mixture of experts in some layers."""
    step = fields.positive("decoder_sparse_step", 1)
    dense = fields.get("mlp_only_layers") or []
    check_list("mlp_only_layers", dense, int)
    norm_topk_prob = fields.one_of("norm_topk_prob", False, False, True)
    return {
        "experts": read_experts(fields, norm_topk_prob=norm_topk_prob),
        "dense_layers": tuple(
            layer for layer in range(num_layers) if layer in dense or (layer + 1) % step
        ),
    }
