"""Models of Hugging Face transformers, captured by forward hooks in each decoder layer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from activation_dataset.sites import HookPoint, Site, site_of, sites_of

ATTENTION = "eager, captured"
"""Name of the attention implementation that also captures queries, keys and values."""


def transformers_model(
    folder: Path, dtype: str, hook_points: Sequence[HookPoint] = ("resid_post",), **options: Any
) -> Callable[..., np.ndarray]:
    """Load a checkpoint in `float32` or `bfloat16`, with options of `from_pretrained`.

    Returns:
        A function from token ids [samples, tokens] int32 and, if padded, an attention mask of the
        same shape, to [sites, samples, tokens, hidden] float32. Sites are all layers at the first
        hook point, then all layers at the next.
    """
    run = transformers_sites(folder, dtype, **options)

    def stacked(token_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        found = run(token_ids, attention_mask)
        layers = sum(isinstance(site, int) for site in found)
        return np.stack([found[site] for site in sites_of(range(layers), hook_points)])

    return stacked


def transformers_sites(
    folder: Path, dtype: str, **options: Any
) -> Callable[..., dict[Site, np.ndarray]]:
    """Load a checkpoint of any family with the class that its `config.json` names.

    Hooks are needed because `hidden_states` has the last layer's output only after the final norm.

    Returns:
        A function from token ids [samples, tokens] int32 and, if padded, an attention mask of the
        same shape, to [samples, tokens, width] for every site of every layer, in float64 if `dtype`
        is float64, else in float32.
    """
    import torch
    import transformers
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(transformers, name).from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=ATTENTION, **options
    )
    captured: dict[Site, np.ndarray] = {}
    shape: list[int] = []

    def keep(layer: int, hook_point: HookPoint, value: torch.Tensor) -> None:
        value = value if dtype == "float64" else value.float()
        captured[site_of(layer, hook_point)] = value.numpy().reshape(*shape, -1).copy()

    text = getattr(model.model, "language_model", model.model)
    for index, layer in enumerate(text.layers):
        _hook(layer, partial(keep, index))

    def run(
        token_ids: np.ndarray, attention_mask: np.ndarray | None = None
    ) -> dict[Site, np.ndarray]:
        captured.clear()
        shape[:] = token_ids.shape
        mask = None if attention_mask is None else torch.from_numpy(attention_mask)
        with torch.no_grad():
            model(torch.from_numpy(token_ids).long(), attention_mask=mask, use_cache=False)
        return dict(captured)

    return run


def _hook(layer: Any, keep: Callable[[HookPoint, Any], None]) -> None:
    """Capture each hook point with hooks on the modules of transformers."""

    def keep_input(module: Any, hook_point: HookPoint) -> None:
        module.register_forward_pre_hook(lambda _, inputs: keep(hook_point, inputs[0]))

    def keep_output(module: Any, hook_point: HookPoint) -> None:
        def hook(_: Any, __: Any, output: Any) -> None:
            keep(hook_point, output[0] if isinstance(output, tuple) else output)

        module.register_forward_hook(hook)

    keep_input(layer, "resid_pre")
    if hasattr(layer, "self_attn"):
        mixer, last = layer.self_attn, layer.self_attn.o_proj
        mixer.keep = keep
    else:
        mixer, last = layer.linear_attn, layer.linear_attn.out_proj
    keep_input(last, "z")
    keep_output(mixer, "attn_out")
    keep_input(layer.post_attention_layernorm, "resid_mid")
    keep_output(layer.post_attention_layernorm, "mlp_in")
    if hasattr(layer.mlp, "gate"):
        keep_output(layer.mlp.gate, "router_logits")
    keep_output(layer.mlp, "mlp_out")
    keep_output(layer, "resid_post")


def _attention(module: Any, query: Any, key: Any, value: Any, *args: Any, **options: Any) -> Any:
    """Run the family's eager attention, and keep its arguments [samples, heads, tokens, size]."""
    arguments: dict[HookPoint, Any] = {"q": query, "k": key, "v": value}
    for hook_point, heads in arguments.items():
        module.keep(hook_point, heads.transpose(1, 2))
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, *args, **options)
