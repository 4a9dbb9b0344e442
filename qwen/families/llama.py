"""Llama 2 and 3, and Mistral."""

from __future__ import annotations

from qwen.config import FULL_ATTENTION, SLIDING_ATTENTION, ModelConfig
from qwen.families.common import read_decoder
from qwen.families.config_fields import ConfigFields, check_supported


def read_config(fields: ConfigFields) -> ModelConfig:
    """Read a `config.json`. Raises ModelConfigError, naming the field."""
    settings = read_decoder(fields, "(Llama|Mistral)")
    fields.one_of("attention_bias", False, False, None)
    window, layer_types = fields.get("sliding_window"), fields.get("layer_types")
    if settings["model_type"] != "mistral":
        window = None
    every = SLIDING_ATTENTION if window else FULL_ATTENTION
    for layer_type in layer_types or ():
        check_supported("layer_types", layer_type, every)
    return ModelConfig(
        **settings,
        attention_bias=False,
        layer_types=(SLIDING_ATTENTION,) * settings["num_hidden_layers"] if window else (),
        sliding_window=window,
    )
