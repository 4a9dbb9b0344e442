"""Qwen2 and Qwen2.5, dense."""

from __future__ import annotations

from qwen.config import ModelConfig
from qwen.families.common import read_decoder, read_sliding_window
from qwen.families.config_fields import ConfigFields


def read_config(fields: ConfigFields) -> ModelConfig:
    """Read the fields of a `config.json`.

    Raises:
        ModelConfigError: if a field is missing, wrong or unsupported. The message names the field.
    """
    settings = read_decoder(fields, "Qwen2")
    fields.one_of("qkv_bias", True, True, None)
    window = read_sliding_window(fields, settings["num_hidden_layers"])
    return ModelConfig(**settings, **window)
