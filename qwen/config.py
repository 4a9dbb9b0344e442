"""The shape of a model, whatever its family."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

FULL_ATTENTION = "full_attention"
SLIDING_ATTENTION = "sliding_attention"


class ModelConfigError(ValueError):
    """A `config.json` that this model code cannot run faithfully."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a model; the fields have the names of `config.json`.

    Attributes:
      model_type: the family, which names tensors and parameters.
      layer_types: what each layer attends to; empty if that is every earlier token in all layers.
      sliding_window: tokens, the own one included, that a layer of `sliding_attention` attends to.
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
    layer_types: tuple[str, ...] = ()
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name not in ("model_type", "layer_types"):
                check_value(field.name, getattr(self, field.name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ModelConfigError(f"head_dim must be even for RoPE, got {self.head_dim}")

    @property
    def query_groups(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def window_of(self, num_layers: int) -> int | None:
        """Return the longest prompt that no window of the first layers affects; None for any."""
        affected = SLIDING_ATTENTION in self.layer_types[:num_layers]
        return self.sliding_window if affected else None

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the `config.json` that describes this model, without empty ones."""
        fields = dataclasses.asdict(self) | {"layer_types": list(self.layer_types)}
        return {name: value for name, value in fields.items() if value not in (None, [])}

    @property
    def layer_flops_per_token(self) -> int:
        """FLOPs of one layer's matrix products for one token, without attention scores."""
        attention_width = self.num_attention_heads * self.head_dim
        qkv_width = attention_width + 2 * self.num_key_value_heads * self.head_dim
        return 2 * self.hidden_size * (qkv_width + attention_width + 3 * self.intermediate_size)

    def attention_flops(self, query_key_pairs: int) -> int:
        """Return the FLOPs of one layer's scores and weighted sums over (query, key) pairs."""
        return 4 * self.num_attention_heads * self.head_dim * query_key_pairs


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


PRESETS: dict[str, ModelConfig] = {
    "Qwen2.5-0.5B": ModelConfig(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        head_dim=64,
    ),
    "tiny": ModelConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    ),
}
"""Shapes that `random:NAME` fills with seeded random weights."""
