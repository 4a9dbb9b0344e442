"""The shape of a model, whatever its family."""

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
"""Slots of a gated delta network whose updates of the state are computed together in float32."""


class ModelConfigError(ValueError):
    """A `config.json` that this model code cannot run faithfully."""


@dataclass(frozen=True)
class RopeScaling:
    """Change of the rotary frequencies for longer contexts.

    Attributes:
        rope_type: `linear`, `yarn` (https://arxiv.org/abs/2309.00071) or `llama3`.
        factor: how much longer the context becomes.
        original_max_position_embeddings: the context of pretraining; of `yarn` and `llama3`.
        attention_factor: what cosines and sines are multiplied by; of `yarn`.
        beta_fast, beta_slow, truncate: bounds of the ramp of `yarn`.
        low_freq_factor, high_freq_factor: bounds of the ramp of `llama3`.
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
    """Gated delta network, a layer's mixer in place of attention (`linear_*` in `config.json`)."""

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
    """Mixture of experts, in place of the MLP.

    Attributes:
        shared_intermediate_size: of the expert that every token goes through; 0 for none.
    """

    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    norm_topk_prob: bool = True
    shared_intermediate_size: int = 0


@dataclass(frozen=True)
class LayerKind:
    """What a layer is made of. Layers of a kind differ in their parameters alone.

    Attributes:
        mixer: causal attention or a gated delta network.
        window: the tokens that a query sees, itself included; None for all earlier ones.
        experts: whether a mixture of experts takes the place of the MLP.
    """

    mixer: Literal["attention", "delta"] = "attention"
    window: int | None = None
    experts: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a model; the fields have the names of `config.json`.

    Attributes:
        model_type: the family, which names tensors and parameters.
        rotary_dim: dimensions of a head that RoPE rotates; 0 for all.
        attention_bias: whether queries, keys and values have biases.
        qk_norm: whether queries and keys are normalized, per head.
        output_gate: whether a gate is applied to attention's heads before the output projection.
        zero_centered_norms: whether the stored scale of a norm is its distance from 1.
        layer_types: of each layer, `full_attention`, `sliding_attention` or `linear_attention`;
            empty if all are `full_attention`.
        sliding_window: tokens, the own one included, that a layer of `sliding_attention` attends
            to.
        dense_layers: layers with an MLP in a model with experts.
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
        """Return what a layer is made of."""
        layer_type = self.layer_types[layer] if self.layer_types else FULL_ATTENTION
        return LayerKind(
            mixer="delta" if layer_type == LINEAR_ATTENTION else "attention",
            window=self.sliding_window if layer_type == SLIDING_ATTENTION else None,
            experts=self.experts is not None and layer not in self.dense_layers,
        )

    def width(self, layer: int, hook_point: HookPoint) -> int:
        """Return the elements of a vector at a hook point; 0 if the layer does not have it."""
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
        """Return the fields as JSON, without empty ones."""
        fields = dataclasses.asdict(self) | {"layer_types": list(self.layer_types)}
        return {name: value for name, value in fields.items() if value not in (None, [])}


def check_value(name: str, value: Any) -> None:
    """Check one field.

    Raises:
        ModelConfigError: naming the field, its value and the values allowed.
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
