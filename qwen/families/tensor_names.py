"""Tensor names in checkpoints: prefixes, tensors to leave out and tensors to refuse.

The tables apply to all families; a family may add rows. Tensors that match no row are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

TRUNK = "model."
"""Prefix of every tensor that activations depend on, in the tables of the families."""

PREFIXES = (
    TRUNK,
    "",
    "model.model.",
    "model.language_model.",
    "language_model.",
    "language_model.model.",
)
"""Prefixes that a checkpoint may have instead of `TRUNK`."""


@dataclass(frozen=True)
class TensorKind:
    """A kind of tensor.

    Attributes:
        pattern: regular expression that matches the whole tensor name in the checkpoint.
        what: description for messages.
        reported: whether the log names the tensors that are left out.
    """

    pattern: str
    what: str
    reported: bool = True


LEFT_OUT = (
    TensorKind(r"(model\.|language_model\.)*lm_head\.(weight|bias)", "the head", reported=False),
    TensorKind(
        r"(.*\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)|"
        r".*\.self_attn\.masked_bias|(.*\.)?position_ids",
        "buffers that are recomputed",
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
    "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(FOLDER), and pass "
    "that folder"
)

DEQUANTIZE = (
    "Pass the original checkpoint, or load this checkpoint with transformers and save the result "
    "of model.dequantize()"
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
"""Tensors that change activations in unsupported ways, each with a remedy.

If several rows match, the first row names the kind.
"""


def first_refused(names: Iterable[str]) -> tuple[str, str, str] | None:
    """Return the name, kind and remedy of a tensor in `REFUSED`; None if there is none."""
    ordered = sorted(names)
    for kind, remedy in REFUSED:
        for name in ordered:
            if re.fullmatch(kind.pattern, name):
                return name, kind.what, remedy
    return None


def kind_of(name: str, kinds: Iterable[TensorKind]) -> TensorKind | None:
    """Return the first of `kinds` that matches a tensor; None if none does."""
    return next((kind for kind in kinds if re.fullmatch(kind.pattern, name)), None)
