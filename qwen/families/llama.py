"""Llama 2 and 3, and Mistral."""

from __future__ import annotations

from qwen.config import FULL_ATTENTION, SLIDING_ATTENTION, ModelConfig
from qwen.families.common import read_decoder, read_layer_types
from qwen.families.config_fields import ConfigFields


def read_config(fields: ConfigFields) -> ModelConfig:
    """Read the fields of a `config.json`.

    Raises:
        ModelConfigError: if a field is missing, wrong or unsupported. The message names the field.
    """
    settings = read_decoder(fields, "(Llama|Mistral)")
    fields.one_of("attention_bias", False, False, None)
    num_layers = settings["num_hidden_layers"]
    window = fields.required("sliding_window") if settings["model_type"] == "mistral" else None
    every = FULL_ATTENTION if window is None else SLIDING_ATTENTION
    read_layer_types(fields, num_layers, every)
    if window is not None:
        settings |= {"sliding_window": window, "layer_types": (every,) * num_layers}
    return ModelConfig(**settings, attention_bias=False)
