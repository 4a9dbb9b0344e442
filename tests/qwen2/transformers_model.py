"""Hugging Face transformers' Qwen2 in PyTorch, captured by a forward hook on each decoder layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def transformers_model(folder: Path, dtype: str) -> Callable[..., np.ndarray]:
    """Loads a checkpoint in ``float32`` or ``bfloat16``.

    Hooks, because ``hidden_states`` gives the last layer's output only after the final norm.

    Returns:
      A function from token ids [samples, tokens] int32, and an attention mask of the same shape
      where they are padded, to [layers, samples, tokens, hidden] float32.
    """
    import torch
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    captured: list[np.ndarray] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *call: captured.append(call[2].float().numpy()))

    def run(token_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        captured.clear()
        mask = None if attention_mask is None else torch.from_numpy(attention_mask)
        with torch.no_grad():
            model(torch.from_numpy(token_ids).long(), attention_mask=mask, use_cache=False)
        return np.stack(captured)

    return run
