"""Hugging Face transformers' Qwen2 in PyTorch, captured by forward hooks in each decoder layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from activation_dataset.sites import HOOK_POINTS, HookPoint


def transformers_model(
    folder: Path, dtype: str, hook_points: Sequence[HookPoint] = ("resid_post",), **options: Any
) -> Callable[..., np.ndarray]:
    """Loads a checkpoint in ``float32`` or ``bfloat16``; options are of ``from_pretrained``.

    Hooks, because ``hidden_states`` gives the last layer's output only after the final norm.

    Returns:
      A function from token ids [samples, tokens] int32, and an attention mask of the same shape
      where they are padded, to [sites, samples, tokens, hidden] float32. Sites are all layers at
      the first hook point, then at the next.
    """
    import torch
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", **options
    )
    captured: dict[HookPoint, list[np.ndarray]] = {}

    def keep(hook_point: HookPoint, value: torch.Tensor) -> None:
        captured[hook_point].append(value.float().numpy().copy())

    for layer in model.model.layers:
        _hook(layer, keep)

    def run(token_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        captured.update({hook_point: [] for hook_point in HOOK_POINTS})
        mask = None if attention_mask is None else torch.from_numpy(attention_mask)
        with torch.no_grad():
            model(torch.from_numpy(token_ids).long(), attention_mask=mask, use_cache=False)
        return np.stack([value for hook_point in hook_points for value in captured[hook_point]])

    return run


def _hook(layer: Any, keep: Callable[[HookPoint, Any], None]) -> None:
    """What each hook point is, in terms of transformers' modules."""
    layer.register_forward_pre_hook(lambda _, inputs: keep("resid_pre", inputs[0]))
    layer.self_attn.register_forward_hook(lambda _, __, output: keep("attn_out", output[0]))
    layer.post_attention_layernorm.register_forward_pre_hook(
        lambda _, inputs: keep("resid_mid", inputs[0])
    )
    layer.mlp.register_forward_hook(lambda _, __, output: keep("mlp_out", output))
    layer.register_forward_hook(lambda _, __, output: keep("resid_post", output))
