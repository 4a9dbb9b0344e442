"""The shape of a Qwen2 model, read from a Hugging Face ``config.json``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class ModelConfigError(ValueError):
    """A ``config.json`` that this model code cannot run faithfully."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a dense Qwen2 or Qwen2.5 model.

    The fields carry the names of ``transformers.Qwen2Config``.
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

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_value(field.name, getattr(self, field.name))
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

    @property
    def layer_flops_per_token(self) -> int:
        """FLOPs of one layer's matrix products for one token, attention scores aside."""
        attention_width = self.num_attention_heads * self.head_dim
        qkv_width = attention_width + 2 * self.num_key_value_heads * self.head_dim
        return 2 * self.hidden_size * (qkv_width + attention_width + 3 * self.intermediate_size)

    def attention_flops(self, query_key_pairs: int) -> int:
        """FLOPs of one layer's scores and weighted sums over that many (query, key) pairs."""
        return 4 * self.num_attention_heads * self.head_dim * query_key_pairs

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """Reads the parsed ``config.json`` of a checkpoint.

        Both spellings of the RoPE settings are accepted: a top-level ``rope_theta`` (published
        Qwen2.5 checkpoints) and ``rope_parameters`` (written by transformers 5).

        Raises:
          ModelConfigError: naming ``source`` and the field that is missing or unsupported.
        """

        try:
            _check_supported(fields)
            for name in ("hidden_size", "num_attention_heads"):
                _check_value(name, _required(fields, name))
            hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
            rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
            return cls(
                vocab_size=_required(fields, "vocab_size"),
                hidden_size=hidden,
                intermediate_size=_required(fields, "intermediate_size"),
                num_hidden_layers=_required(fields, "num_hidden_layers"),
                num_attention_heads=heads,
                num_key_value_heads=fields.get("num_key_value_heads") or heads,
                head_dim=fields.get("head_dim") or hidden // heads,
                max_position_embeddings=fields.get("max_position_embeddings", 32_768),
                rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
                rope_theta=rope.get("rope_theta", fields.get("rope_theta", 10_000.0)),
                tie_word_embeddings=fields.get("tie_word_embeddings", False),
            )
        except ModelConfigError as error:
            raise ModelConfigError(f"{source}: {error}") from error


def _required(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise ModelConfigError(f"the field {name!r} is missing")
    return fields[name]


def _check_value(name: str, value: Any) -> None:
    if name in ("rms_norm_eps", "rope_theta"):
        expected, fits = "a positive number", type(value) in (int, float) and 0 < value < math.inf
    elif name == "tie_word_embeddings":
        expected, fits = "true or false", isinstance(value, bool)
    else:
        expected, fits = "a positive integer", type(value) is int and value > 0
    if not fits:
        raise ModelConfigError(f"{name} must be {expected}, got {value!r}")


def _check_supported(fields: Mapping[str, Any]) -> None:
    """Checks what would change the computation, were it not what this model code does."""

    def supported(name: str, value: Any, *allowed: Any) -> None:
        if value not in allowed:
            raise ModelConfigError(
                f"{name}={value!r} is not supported; supported: " + ", ".join(map(repr, allowed))
            )

    supported("model_type", _required(fields, "model_type"), "qwen2")
    supported("hidden_act", fields.get("hidden_act", "silu"), "silu")
    supported("use_sliding_window", fields.get("use_sliding_window", False), False, None)
    for layer_type in fields.get("layer_types") or ():
        supported("layer_types", layer_type, "full_attention")
    for name in ("rope_parameters", "rope_scaling"):
        settings = fields.get(name) or {}
        if not isinstance(settings, Mapping):
            raise ModelConfigError(f"{name} must be an object, got {settings!r}")
        rope_type = settings.get("rope_type", settings.get("type", "default"))
        supported(f"{name}.rope_type", rope_type, "default")
        for key in settings:
            supported(f"a key of {name}", key, "rope_theta", "rope_type", "type")


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
"""Shapes that ``random:NAME`` fills with seeded random weights."""
