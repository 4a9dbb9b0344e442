"""The peers' model: a preset's shape with random weights, in PyTorch."""

from __future__ import annotations

from typing import Any

from qwen.presets import PRESETS


def torch_model(preset: str, dtype: str, with_head: bool = False) -> Any:
    """Hugging Face's Qwen2 with its default attention (SDPA), on the CPU.

    Args:
      preset: name of a shape in ``PRESETS``.
      dtype: of the weights, by its name in PyTorch.
      with_head: whether the model ends in logits.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

    shape = PRESETS[preset]
    config = Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
    )
    kind = Qwen2ForCausalLM if with_head else Qwen2Model
    with torch.device("cpu"):
        model = kind(config)
    return model.to(getattr(torch, dtype)).eval()
