"""Names of tensors in checkpoints: those of the model, those to leave out, those to refuse.

The tables are for all families; a family may add rows of its own. What no row knows is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

TRUNK = "model."
"""What precedes the name of every tensor that activations depend on, as families spell it."""

PREFIXES = (
    TRUNK,
    "",
    "model.model.",
    "model.language_model.",
    "language_model.",
    "language_model.model.",
)
"""What a checkpoint may have in its place."""


@dataclass(frozen=True)
class TensorKind:
    """Tensors of one kind.

    Attributes:
        pattern: a regular expression that matches their whole names in the checkpoint.
        what: a name for them.
        reported: whether the user is told that they are not read.
    """

    pattern: str
    what: str
    reported: bool = True


LEFT_OUT = (
    TensorKind(r"(model\.|language_model\.)*lm_head\.(weight|bias)", "the head", reported=False),
    TensorKind(
        r"(.*\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)|"
        r".*\.self_attn\.masked_bias|(.*\.)?position_ids",
        "buffers that are computed again",
        reported=False,
    ),
    TensorKind(
        r"(model\.|language_model\.)*"
        r"(score|classifier|qa_outputs|summary|"
        r"(v|rm|cls|value|reward|classification|regression|medusa)_head)\..+",
        "another head",
    ),
)
"""Tensors that no activation depends on."""

MERGE = (
    "Merge the adapter into its base model with peft, "
    "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(FOLDER), and give "
    "that folder"
)

DEQUANTIZE = (
    "Give the checkpoint that it was made from, or load it with transformers and save what "
    "model.dequantize() returns"
)

REFUSED = (
    (TensorKind(r".*\.(lora_\w+|ia3_l|base_layer)(\..+)?", "a LoRA adapter"), MERGE),
    *(
        (TensorKind(rf".*({suffixes})", f"quantized with {method}"), DEQUANTIZE)
        for suffixes, method in (
            (r"\.g_idx", "GPTQ"),
            (r"\.(qweight|qzeros)", "AWQ or GPTQ"),
            (r"\.(nested_)?(absmax|quant_map)|\.quant_state\.\w+|\.SCB", "bitsandbytes"),
            (r"\.weight_(packed|shape|zero_point|global_scale)", "compressed-tensors"),
            (r"\.weight_scale_inv", "FP8 in blocks"),
            (r"\.(weight|input|output|activation|[kqv])_scale(_2)?", "FP8 or compressed-tensors"),
            (r"\.(scales|biases)", "MLX"),
            (r"\.weight\._(data|scale)", "quanto"),
            (r"\.(codes|codebooks)", "AQLM"),
            (r"\.W_q", "HQQ"),
            (r"_(blocks|scales)", "MXFP4"),
        )
    ),
)
"""Tensors that change activations in ways that are not understood, and what to do about them.

If several rows match, the first one names the kind.
"""


def first_refused(names: Iterable[str]) -> tuple[str, str, str] | None:
    """Return name, kind and remedy of a tensor that `REFUSED` lists; None if there is none."""
    ordered = sorted(names)
    for kind, remedy in REFUSED:
        for name in ordered:
            if re.fullmatch(kind.pattern, name):
                return name, kind.what, remedy
    return None


def kind_of(name: str, kinds: Iterable[TensorKind]) -> TensorKind | None:
    """Return the first of `kinds` that a tensor is of."""
    return next((kind for kind in kinds if re.fullmatch(kind.pattern, name)), None)
