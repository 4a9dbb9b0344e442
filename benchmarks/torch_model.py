"""PyTorch model for the libraries under comparison: a preset's shape with random weights."""

from __future__ import annotations

import json
from typing import Any

from qwen.presets import preset_file


def torch_model(preset: str, num_layers: int | None, dtype: str, with_head: bool = False) -> Any:
    """Return Hugging Face's model with its default attention (SDPA), on the CPU.

    Args:
        preset: name of a shape in `qwen/presets`.
        num_layers: number of layers; None for all.
        dtype: dtype of the weights, by its name in PyTorch.
        with_head: whether the model returns logits.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    fields = json.loads(preset_file(preset).read_bytes())
    if num_layers is not None:
        fields["num_hidden_layers"] = num_layers
        if "layer_types" in fields:
            fields["layer_types"] = fields["layer_types"][:num_layers]
    config = AutoConfig.for_model(**fields)
    kind = AutoModelForCausalLM if with_head else AutoModel
    with torch.device("cpu"):
        model = kind.from_config(config, dtype=getattr(torch, dtype))
    return model.eval()
