"""Readers of `config.json` settings that several families share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qwen.config import (
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    ExpertsConfig,
    ModelConfigError,
    RopeScaling,
    check_value,
)
from qwen.families.config_fields import ConfigFields, check_supported

_CLASSES = (
    r"Model|For(CausalLM|SequenceClassification|TokenClassification|QuestionAnswering|"
    r"\w*RewardModel)"
)

UNUSED = 1
"""Placeholder for the intermediate size of a model whose layers all have experts."""


def read_decoder(
    fields: ConfigFields,
    class_prefix: str,
    default_rotary_factor: float = 1,
    head_dim: int | None = None,
) -> dict[str, Any]:
    """Return the arguments of `ModelConfig` that all families share.

    Args:
        fields: fields of `config.json`.
        class_prefix: pattern of the prefix of the family's class names in transformers.
        default_rotary_factor: default fraction of a head's dimensions that RoPE rotates.
        head_dim: default of `head_dim`; if None, the hidden size divided by the number of heads.

    Raises:
        ModelConfigError: if a field is missing, wrong or unsupported. The message names the field.
    """
    fields.check_classes(class_prefix + f"({_CLASSES})")
    model_type = fields.required("model_type")
    fields.one_of("hidden_act", "silu", "silu", "swish")
    hidden, heads = (fields.positive(name) for name in ("hidden_size", "num_attention_heads"))
    size = fields.get("head_dim") or head_dim or hidden // heads
    check_value("head_dim", size)
    length = fields.get("max_position_embeddings", 32_768)
    check_value("max_position_embeddings", length)
    return {
        "vocab_size": fields.required("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": fields.get("intermediate_size") or UNUSED
        if model_type.startswith("qwen3_5_moe")
        else fields.required("intermediate_size"),
        "num_hidden_layers": fields.positive("num_hidden_layers"),
        "num_attention_heads": heads,
        # Other families have other defaults than Llama for an absent field.
        "num_key_value_heads": fields.get("num_key_value_heads") or heads
        if model_type == "llama"
        else fields.required("num_key_value_heads") or heads,
        "head_dim": size,
        "max_position_embeddings": length,
        "rms_norm_eps": fields.get("rms_norm_eps", 1e-6),
        "tie_word_embeddings": fields.get("tie_word_embeddings", False),
        "model_type": model_type,
        **read_rope(fields, size, length, default_rotary_factor),
    }


def read_rope(
    fields: ConfigFields, head_dim: int, max_length: int, default_factor: float
) -> dict[str, Any]:
    """Return the arguments of `ModelConfig` for RoPE, from any of three places.

    Published checkpoints have a top-level `rope_theta`, transformers 5 writes `rope_parameters`,
    and both may have `rope_scaling`.

    Raises:
        ModelConfigError: if a setting is wrong or unsupported, or two places contradict each other.
    """
    scaling, parameters = (_object(fields, name) for name in ("rope_scaling", "rope_parameters"))
    if scaling and parameters and scaling != parameters:
        raise _contradiction("rope_scaling", scaling, "rope_parameters", parameters)
    name, values = ("rope_scaling", scaling) if scaling else ("rope_parameters", parameters)
    settings = ConfigFields(values)
    factor = _agreed(fields, settings, name, "partial_rotary_factor", default_factor)
    if default_factor == 1:  # These families ignore the factor and rotate whole heads.
        check_supported("partial_rotary_factor", factor, 1)
    rotary_dim = int(head_dim * factor) if type(factor) in (int, float) else 0
    if rotary_dim != head_dim and (not 0 < rotary_dim < head_dim or rotary_dim % 2):
        raise ModelConfigError(
            f"partial_rotary_factor={factor!r} must select an even number of the {head_dim} "
            "dimensions of a head"
        )
    theta = _agreed(fields, settings, name, "rope_theta", 10_000.0)
    kind = settings.get("rope_type", settings.get("type", "default"))
    check_supported(f"{name}.rope_type", kind, "default", "linear", "yarn", "llama3")
    found: dict[str, Any] = {"rope_theta": theta}
    found |= {"rotary_dim": 0 if rotary_dim == head_dim else rotary_dim}
    # For text, all sections have the same positions.
    for each in ("mrope_section", "mrope_interleaved"):
        settings.get(each)
    if kind != "default":
        found["rope_scaling"] = _read_scaling(settings, name, kind, max_length)
    if unknown := settings.unread():
        raise ModelConfigError(f"{name}.{unknown[0]} is not supported for rope_type {kind!r}")
    return found


def _read_scaling(fields: ConfigFields, name: str, kind: Any, max_length: int) -> RopeScaling:
    def number(key: str, default: float | None = None) -> float:
        value: Any = fields.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ModelConfigError(f"{name}.{key} must be a positive number, got {value!r}")
        return float(value)

    factor = number("factor")
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if low >= high:
            raise ModelConfigError(
                f"{name}.low_freq_factor={low} must be less than {name}.high_freq_factor={high}"
            )
        length = fields.positive("original_max_position_embeddings")
        return RopeScaling("llama3", factor, length, low_freq_factor=low, high_freq_factor=high)
    by_default = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return RopeScaling(
        "yarn",
        factor,
        fields.positive("original_max_position_embeddings", max_length),
        attention_factor=number("attention_factor", by_default),
        beta_fast=number("beta_fast", 32),
        beta_slow=number("beta_slow", 1),
        truncate=fields.one_of("truncate", True, True, False),
    )


def _agreed(fields: ConfigFields, settings: ConfigFields, name: str, key: str, default: Any) -> Any:
    """Return a setting from the object `name` or the top level; both must agree."""
    inner = settings.get(key)
    outer = fields.get(key)
    if inner is not None and outer not in (None, inner):
        raise _contradiction(key, outer, f"{name}.{key}", inner)
    found = outer if inner is None else inner
    return default if found is None else found


def read_experts(fields: ConfigFields, norm_topk_prob: bool, shared: int = 0) -> ExpertsConfig:
    """Read a mixture of experts; transformers 5 writes `num_experts` as `num_local_experts`.

    Raises:
        ModelConfigError: if a field is missing, wrong or contradicts another field. The message
            names the field.
    """
    name = "num_local_experts" if fields.get("num_local_experts") else "num_experts"
    experts = ExpertsConfig(
        num_experts=fields.positive(name),
        num_experts_per_tok=fields.positive("num_experts_per_tok"),
        intermediate_size=fields.positive("moe_intermediate_size"),
        norm_topk_prob=norm_topk_prob,
        shared_intermediate_size=shared,
    )
    if fields.get("num_experts", experts.num_experts) != experts.num_experts:
        raise _contradiction(name, experts.num_experts, "num_experts", fields.get("num_experts"))
    if experts.num_experts_per_tok > experts.num_experts:
        raise ModelConfigError(
            f"num_experts_per_tok={experts.num_experts_per_tok} is more than {name}="
            f"{experts.num_experts}"
        )
    return experts


def read_layer_types(fields: ConfigFields, num_layers: int, *allowed: str) -> tuple[str, ...]:
    """Return `layer_types`, or an empty tuple if absent.

    Raises:
        ModelConfigError: if an entry is missing or unsupported. The message has the entry.
    """
    types = fields.get("layer_types")
    if types is None:
        return ()
    if not isinstance(types, list) or len(types) < num_layers:
        raise ModelConfigError(
            f"layer_types must have an entry for each of the {num_layers} layers "
            f"(num_hidden_layers), got {types!r}"
        )
    for layer_type in types[:num_layers]:
        check_supported("layer_types", layer_type, *allowed)
    return tuple(types[:num_layers])


def check_list(name: str, value: Any, of: type) -> None:
    """Check that a field is a list of values of one type.

    Raises:
        ModelConfigError: if the value is not such a list. The message names the field.
    """
    if not isinstance(value, list) or not all(type(each) is of for each in value):
        raise ModelConfigError(f"{name} must be a list of {of.__name__}, got {value!r}")


def read_sliding_window(fields: ConfigFields, num_layers: int) -> dict[str, Any]:
    """Return the arguments of `ModelConfig` for the sliding window of Qwen2 and Qwen3.

    As in transformers, `layer_types` takes precedence. If it is absent and `use_sliding_window` is
    true, layers `max_window_layers` and above have the window.

    Raises:
        ModelConfigError: if a field is wrong or contradicts another field. The message names the
            field.
    """
    switch = fields.one_of("use_sliding_window", False, False, True, None)
    window, first = fields.get("sliding_window", 4096), fields.get("max_window_layers", 28)
    types = read_layer_types(fields, num_layers, FULL_ATTENTION, SLIDING_ATTENTION)
    if not switch:
        window = None
    if not types:
        if type(first) is not int or first < 0:
            raise ModelConfigError(
                f"max_window_layers must be 0 or a positive integer, got {first!r}"
            )
        full = num_layers if window is None else first
        types = tuple(SLIDING_ATTENTION if i >= full else FULL_ATTENTION for i in range(num_layers))
    if SLIDING_ATTENTION not in types:
        return {}
    if window is None:
        raise ModelConfigError(
            f"layer_types has {SLIDING_ATTENTION!r}, but use_sliding_window is {switch!r} or "
            "sliding_window is null"
        )
    return {"layer_types": types, "sliding_window": window}


def _object(fields: ConfigFields, name: str) -> Mapping[str, Any]:
    value = fields.get(name) or {}
    if not isinstance(value, Mapping):
        raise ModelConfigError(f"{name} must be an object, got {value!r}")
    return value


def _contradiction(one: str, value: Any, other: str, other_value: Any) -> ModelConfigError:
    return ModelConfigError(
        f"{one}={value!r} contradicts {other}={other_value!r}; remove the wrong field, or pass it "
        "to --ignore_config"
    )
