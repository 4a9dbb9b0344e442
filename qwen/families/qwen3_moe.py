"""Qwen3 with a mixture of experts."""

from __future__ import annotations

from qwen.config import ModelConfig
from qwen.families.parameters import (
    Parameters,
    ParameterSource,
    attention,
    mlp,
    norm,
    router,
    stacked,
)


def layer_parameters(config: ModelConfig, layer: int) -> Parameters:
    """The source of every parameter of a layer."""
    hidden = config.hidden_size
    shared = {
        **norm("attention_norm", "input_layernorm", hidden, config),
        **attention(config),
        **norm("mlp_norm", "post_attention_layernorm", hidden, config),
    }
    if not config.kind(layer).experts or config.experts is None:
        return {**shared, **mlp("mlp", "mlp", hidden, config.intermediate_size)}
    experts = config.experts

    def kernels(name: str, shape: tuple[int, int]) -> ParameterSource:
        tensors = tuple(
            (f"mlp.experts.{expert}.{name}.weight", shape) for expert in range(experts.num_experts)
        )
        return ParameterSource(tensors, stacked, split_axis=0)

    wide, narrow = (experts.intermediate_size, hidden), (hidden, experts.intermediate_size)
    return {
        **shared,
        **router(experts, hidden),
        ("experts", "gate_kernel"): kernels("gate_proj", wide),
        ("experts", "up_kernel"): kernels("up_proj", wide),
        ("experts", "down_kernel"): kernels("down_proj", narrow),
    }
