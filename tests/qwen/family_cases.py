"""Small models of every family in unusual shapes, written by transformers' `save_pretrained`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCABULARY = 320

ATTENTION, DELTA = "full_attention", "linear_attention"


@dataclass(frozen=True)
class Case:
    """Shape and options of a model, as transformers names them.

    Attributes:
        name: name of the classes, without `Config` and `ForCausalLM`.
        heads: numbers of query heads and key-value heads.
        delta: numbers of key heads and value heads, and their dimensions.
        multimodal: whether the model is the text part of a checkpoint with a vision tower and `mtp`
            tensors.
        published: fields of `config.json` to replace with their published form; None removes a
            field.
    """

    name: str
    heads: tuple[int, int]
    head_dim: int
    hidden_size: int = 48
    layers: int = 3
    tied: bool = False
    rope: dict[str, Any] = field(default_factory=dict)
    delta: tuple[int, int, int, int] | None = None
    others: dict[str, Any] = field(default_factory=dict)
    multimodal: bool = False
    published: dict[str, Any] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """True if the model has only attention and MLPs."""
        return self.delta is None and "num_experts" not in self.others


def _experts(number: int, per_token: int, size: int, **others: Any) -> dict[str, Any]:
    return {
        "num_experts": number,
        "num_experts_per_tok": per_token,
        "moe_intermediate_size": size,
        **others,
    }


def _yarn(**others: Any) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 1e4,
        **others,
    }


CASES = {
    "qwen2, YaRN": Case("Qwen2", (6, 2), 20, tied=True, rope=_yarn()),
    "qwen2, linear scaling, multi-head": Case(
        "Qwen2", (5, 5), 12, 60, rope={"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}
    ),
    "qwen2, windows of 50 from layer 1 on": Case(
        "Qwen2",
        (7, 1),
        24,
        others={"use_sliding_window": True, "sliding_window": 50, "max_window_layers": 1},
    ),
    "qwen2, as DeepSeek-R1-Distill": Case(
        "Qwen2",
        (12, 2),
        4,
        published={
            "rope_parameters": None,
            "rope_theta": 10000,
            "dtype": None,
            "torch_dtype": "bfloat16",
            "sliding_window": 4096,
            "use_mrope": False,
            "layer_types": None,
        },
    ),
    "qwen3": Case("Qwen3", (6, 2), 20),
    "qwen3, YaRN, multi-head": Case(
        "Qwen3", (5, 5), 36, 40, tied=True, rope=_yarn(attention_factor=1.2, beta_fast=16.0)
    ),
    "qwen3, windows of 50 below full attention": Case(
        "Qwen3",
        (8, 1),
        12,
        others={
            "use_sliding_window": True,
            "sliding_window": 50,
            "layer_types": ["sliding_attention", "sliding_attention", ATTENTION],
        },
    ),
    "qwen3_moe, first layer dense": Case(
        "Qwen3Moe",
        (6, 2),
        20,
        others=_experts(6, 3, 24, norm_topk_prob=True, mlp_only_layers=[0]),
    ),
    "qwen3_moe, every second layer dense, shares not normalized": Case(
        "Qwen3Moe",
        (4, 4),
        12,
        tied=True,
        others=_experts(5, 2, 20, norm_topk_prob=False, decoder_sparse_step=2),
    ),
    "qwen3_moe, one expert per token, YaRN": Case(
        "Qwen3Moe",
        (5, 1),
        28,
        56,
        layers=2,
        rope=_yarn(),
        others=_experts(7, 1, 32, norm_topk_prob=False),
    ),
    "qwen3_5": Case("Qwen3_5", (6, 2), 24, layers=4, delta=(2, 6, 32, 20)),
    "qwen3_5, multimodal": Case(
        "Qwen3_5", (4, 1), 40, layers=4, tied=True, delta=(3, 3, 16, 24), multimodal=True
    ),
    "qwen3_5, delta on top, half of a head rotated": Case(
        "Qwen3_5",
        (3, 3),
        20,
        36,
        rope={"partial_rotary_factor": 0.5, "rope_theta": 1e4},
        delta=(1, 4, 24, 12),
        others={"layer_types": [ATTENTION, DELTA, DELTA], "linear_conv_kernel_dim": 3},
    ),
    "qwen3_5_moe": Case(
        "Qwen3_5Moe",
        (6, 2),
        24,
        layers=4,
        delta=(2, 6, 32, 20),
        others=_experts(6, 3, 24, shared_expert_intermediate_size=40),
    ),
    "qwen3_5_moe, multimodal": Case(
        "Qwen3_5Moe",
        (4, 4),
        24,
        layers=4,
        tied=True,
        delta=(2, 4, 16, 32),
        others=_experts(5, 2, 20, shared_expert_intermediate_size=24),
        multimodal=True,
    ),
    "qwen3_5_moe, delta on top": Case(
        "Qwen3_5Moe",
        (5, 1),
        40,
        40,
        delta=(3, 3, 24, 16),
        others=_experts(
            7,
            1,
            32,
            shared_expert_intermediate_size=12,
            layer_types=[ATTENTION, DELTA, DELTA],
        ),
    ),
    "llama, llama3 scaling": Case(
        "Llama",
        (6, 2),
        20,
        tied=True,
        rope={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
            "rope_theta": 1e4,
        },
    ),
    "llama, as Llama 2": Case(
        "Llama",
        (4, 4),
        12,
        others={"rms_norm_eps": 1e-5},
        published={
            "rope_parameters": None,
            "rope_scaling": None,
            "pretraining_tp": 1,
            "head_dim": None,
        },
        rope={"rope_theta": 1e4},
    ),
    "mistral, window of 50": Case("Mistral", (6, 2), 8, others={"sliding_window": 50}),
    "mistral, no window": Case("Mistral", (3, 1), 36, others={"sliding_window": None}),
}


def save(case: Case, folder: Path) -> None:
    """Let transformers save the case with random weights, large enough to expose errors."""
    import torch
    import transformers

    torch.manual_seed(0)
    text = config_of(case)
    if case.multimodal:
        vision = {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": case.hidden_size,
            "num_position_embeddings": 16,
        }
        config_class = getattr(transformers, f"{case.name}Config")
        config = config_class(
            text_config=text.to_dict(), vision_config=vision, tie_word_embeddings=case.tied
        )
        model = getattr(transformers, f"{case.name}ForConditionalGeneration")(config)
    else:
        model = getattr(transformers, f"{case.name}ForCausalLM")(text)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            from_zero = case.delta is not None and "linear_attn" not in name
            parameter.data = 0.3 * noise + (0 if from_zero else 1)
        elif name.endswith(("bias", "A_log")) or "conv1d" in name:
            parameter.data = 0.5 * noise
        elif "embed" in name or name.endswith("dt_bias"):
            parameter.data = noise
        else:
            parameter.data = noise * parameter.shape[-1] ** -0.5
    model.save_pretrained(folder)
    if case.multimodal:
        _add_mtp(folder / "model.safetensors")
    if case.published:
        file = folder / "config.json"
        fields = json.loads(file.read_text()) | case.published
        file.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def config_of(case: Case) -> Any:
    """Return transformers' config of the text model."""
    import transformers

    rope = {"rope_type": "default", "rope_theta": 1e6}
    others = dict(case.others)
    if case.delta is not None:
        rope["partial_rotary_factor"] = 0.25
        names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
        others |= {f"linear_{n}": value for n, value in zip(names, case.delta, strict=True)}
    part = "Text" if case.delta is not None else ""
    return getattr(transformers, f"{case.name}{part}Config")(
        vocab_size=VOCABULARY,
        hidden_size=case.hidden_size,
        intermediate_size=80,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads[0],
        num_key_value_heads=case.heads[1],
        head_dim=case.head_dim,
        tie_word_embeddings=case.tied,
        rope_parameters=rope | case.rope,
        **others,
    )


def _add_mtp(file: Path) -> None:
    """Add tensors that published checkpoints have and transformers ignores."""
    import torch
    from safetensors.torch import load_file, save_file

    others = {"mtp.fc.weight": torch.ones(4, 8), "mtp.layers.0.mlp.up_proj.weight": torch.ones(2)}
    save_file(load_file(file) | others, file, metadata={"format": "pt"})
