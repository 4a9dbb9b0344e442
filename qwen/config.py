"""The architecture of a model, for all families."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from activation_dataset.sites import HookPoint

FULL_ATTENTION = "full_attention"
SLIDING_ATTENTION = "sliding_attention"
LINEAR_ATTENTION = "linear_attention"

DELTA_CHUNK = 64
"""Slots per chunk of a gated delta network in float32, which updates its state once per chunk."""


class ModelConfigError(ValueError):
    """A `config.json` of a model that this code cannot reproduce exactly."""


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of the rotary frequencies for longer contexts.

    Attributes:
        rope_type: `linear`, `yarn` (https://arxiv.org/abs/2309.00071) or `llama3`.
        factor: ratio of the extended to the original context length.
        original_max_position_embeddings: context length of pretraining, for `yarn` and `llama3`.
        attention_factor: factor of cosines and sines, for `yarn`.
        beta_fast: upper bound of the ramp of `yarn`, in rotations over the original context.
        beta_slow: lower bound of the ramp of `yarn`, in the same unit.
        truncate: whether `yarn` rounds the bounds to whole dimensions.
        low_freq_factor: lower bound of the ramp of `llama3`, in rotations over the original
            context.
        high_freq_factor: upper bound of the ramp of `llama3`, in the same unit.
    """

    rope_type: Literal["linear", "yarn", "llama3"]
    factor: float
    original_max_position_embeddings: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True)
class DeltaConfig:
    """Gated delta network, which replaces attention in a layer (`linear_*` in `config.json`)."""

    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel_dim: int

    @property
    def value_groups(self) -> int:
        """Value heads that share one key head."""
        return self.num_value_heads // self.num_key_heads


@dataclass(frozen=True)
class ExpertsConfig:
    """Mixture of experts, which replaces the MLP in a layer.

    Attributes:
        shared_intermediate_size: intermediate size of the expert that every token uses; 0 for none.
    """

    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    norm_topk_prob: bool = True
    shared_intermediate_size: int = 0


@dataclass(frozen=True)
class LayerKind:
    """Structure of a layer. Layers of the same kind differ only in their parameters.

    Attributes:
        mixer: causal attention or a gated delta network.
        window: number of tokens that a query sees, including its own; None for no limit.
        experts: whether a mixture of experts replaces the MLP.
    """

    mixer: Literal["attention", "delta"] = "attention"
    window: int | None = None
    experts: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a model, with the field names of `config.json`.

    Attributes:
        model_type: the family, which determines the names of tensors.
        rotary_dim: dimensions of a head that RoPE rotates; 0 for all.
        attention_bias: whether queries, keys and values have biases.
        qk_norm: whether queries and keys are normalized per head.
        output_gate: whether the heads of attention are gated before the output projection.
        zero_centered_norms: whether checkpoints store the scale of a norm minus 1.
        layer_types: `full_attention`, `sliding_attention` or `linear_attention` for each layer;
            empty if all layers have `full_attention`.
        sliding_window: number of tokens that a query sees in a layer of `sliding_attention`,
            including its own.
        dense_layers: layers that have an MLP in a model with experts.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 32_768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    tie_word_embeddings: bool = True
    model_type: str = "qwen2"
    rotary_dim: int = 0
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = True
    qk_norm: bool = False
    output_gate: bool = False
    zero_centered_norms: bool = False
    layer_types: tuple[str, ...] = ()
    sliding_window: int | None = None
    delta: DeltaConfig | None = None
    experts: ExpertsConfig | None = None
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in _CHECKED:
            check_value(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ModelConfigError(f"head_dim must be even for RoPE, got {self.head_dim}")

    def kind(self, layer: int) -> LayerKind:
        """Return the structure of a layer."""
        layer_type = self.layer_types[layer] if self.layer_types else FULL_ATTENTION
        return LayerKind(
            mixer="delta" if layer_type == LINEAR_ATTENTION else "attention",
            window=self.sliding_window if layer_type == SLIDING_ATTENTION else None,
            experts=self.experts is not None and layer not in self.dense_layers,
        )

    def width(self, layer: int, hook_point: HookPoint) -> int:
        """Return the number of elements of a vector at a hook point; 0 if the layer lacks it."""
        kind, heads, size = self.kind(layer), self.num_attention_heads, self.head_dim
        values = heads * size
        if kind.mixer == "delta" and self.delta is not None:
            heads, values = 0, self.delta.num_value_heads * self.delta.value_head_dim
        keys = self.num_key_value_heads * size if heads else 0
        experts = self.experts.num_experts if kind.experts and self.experts else 0
        widths: dict[str, int] = {"q": heads * size, "k": keys, "v": keys, "z": values}
        return (widths | {"router_logits": experts}).get(hook_point, self.hidden_size)

    @property
    def query_groups(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON, without None and empty lists."""
        fields = dataclasses.asdict(self) | {"layer_types": list(self.layer_types)}
        return {name: value for name, value in fields.items() if value not in (None, [])}


def check_value(name: str, value: Any) -> None:
    """Check one field.

    Raises:
        ModelConfigError: if the value is not allowed. The message names the field, its value and
            the allowed values.
    """
    if name in ("rms_norm_eps", "rope_theta"):
        expected, fits = "a positive number", type(value) in (int, float) and 0 < value < math.inf
    elif name == "sliding_window" and value is None:
        return
    elif name == "tie_word_embeddings":
        expected, fits = "true or false", isinstance(value, bool)
    else:
        expected, fits = "a positive integer", type(value) is int and value > 0
    if not fits:
        raise ModelConfigError(f"{name} must be {expected}, got {value!r}")


_CHECKED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
    *("rms_norm_eps", "rope_theta", "tie_word_embeddings", "sliding_window"),
)
