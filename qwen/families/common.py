"""Settings that several families read from `config.json` in the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qwen.config import FULL_ATTENTION, SLIDING_ATTENTION, ModelConfigError, check_value
from qwen.families.config_fields import ConfigFields, check_supported

_CLASSES = (
    r"Model|For(CausalLM|SequenceClassification|TokenClassification|QuestionAnswering|"
    r"\w*RewardModel)"
)


def read_decoder(fields: ConfigFields, class_prefix: str) -> dict[str, Any]:
    """Return the arguments of `ModelConfig` that all decoders have.

    Args:
      fields: of the `config.json`.
      class_prefix: the first part of the names of the family's classes in transformers.

    Raises:
      ModelConfigError: naming the field that is missing, wrong or unsupported.
    """
    for name in fields.get("architectures") or ():
        if not re.fullmatch(class_prefix + f"({_CLASSES})", str(name)):
            raise ModelConfigError(
                f"architectures names {name!r}, which is not a class of this family; if its layers "
                f"are those of {class_prefix}Model, pass --ignore_config architectures"
            )
    fields.one_of("hidden_act", "silu", "silu", "swish")
    hidden, heads = (_positive(fields, name) for name in ("hidden_size", "num_attention_heads"))
    return {
        "vocab_size": fields.required("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": fields.required("intermediate_size"),
        "num_hidden_layers": _positive(fields, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("num_key_value_heads") or heads,
        "head_dim": fields.get("head_dim") or hidden // heads,
        "max_position_embeddings": fields.get("max_position_embeddings", 32_768),
        "rms_norm_eps": fields.get("rms_norm_eps", 1e-6),
        "rope_theta": read_rope_theta(fields),
        "tie_word_embeddings": fields.get("tie_word_embeddings", False),
    }


def read_rope_theta(fields: ConfigFields) -> Any:
    """Return the base of RoPE without scaling, from any of its three places.

    Published checkpoints have a top-level `rope_theta`, transformers 5 writes `rope_parameters`,
    and both may have `rope_scaling`.

    Raises:
      ModelConfigError: if RoPE is scaled, or two places contradict each other.
    """
    scaling, parameters = (_object(fields, name) for name in ("rope_scaling", "rope_parameters"))
    if scaling and parameters and scaling != parameters:
        raise _contradiction("rope_scaling", scaling, "rope_parameters", parameters)
    name, settings = ("rope_scaling", scaling) if scaling else ("rope_parameters", parameters)
    for key, value in settings.items():
        if key in ("rope_type", "type"):
            check_supported(f"{name}.rope_type", value, "default")
        elif key == "partial_rotary_factor":
            check_supported(f"{name}.{key}", value, 1, None)
        else:
            check_supported(f"a key of {name}", key, "rope_theta", "rope_type", "type")
    inner = settings.get("rope_theta", 10_000.0)
    theta = fields.get("rope_theta", inner)
    if "rope_theta" in settings and theta not in (None, inner):
        raise _contradiction("rope_theta", theta, f"{name}.rope_theta", inner)
    return settings.get("rope_theta", theta)


def read_sliding_window(fields: ConfigFields, num_layers: int) -> dict[str, Any]:
    """Return the arguments of `ModelConfig` for the sliding window of Qwen2 and Qwen3.

    As in transformers, `layer_types` decides if given, else the layers from `max_window_layers` on
    have the window, if `use_sliding_window` is true.

    Raises:
      ModelConfigError: naming the field that is wrong or contradicts another.
    """
    switch = fields.one_of("use_sliding_window", False, False, True, None)
    window, first = fields.get("sliding_window", 4096), fields.get("max_window_layers", 28)
    types = fields.get("layer_types")
    if not switch:
        window = None
    if types is None:
        if type(first) is not int or first < 0:
            raise ModelConfigError(f"max_window_layers must be a natural number, got {first!r}")
        full = num_layers if window is None else first
        types = [SLIDING_ATTENTION if i >= full else FULL_ATTENTION for i in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers:
        raise ModelConfigError(
            f"layer_types must have one entry for each of the {num_layers} layers of "
            f"num_hidden_layers, got {types!r}"
        )
    for layer_type in types:
        check_supported("layer_types", layer_type, FULL_ATTENTION, SLIDING_ATTENTION)
    if SLIDING_ATTENTION not in types:
        return {}
    if window is None:
        raise ModelConfigError(
            f"layer_types has {SLIDING_ATTENTION!r}, but use_sliding_window is {switch!r} or "
            "sliding_window is null"
        )
    return {"layer_types": tuple(types), "sliding_window": window}


def _positive(fields: ConfigFields, name: str) -> int:
    value: int = fields.required(name)
    check_value(name, value)
    return value


def _object(fields: ConfigFields, name: str) -> Mapping[str, Any]:
    value = fields.get(name) or {}
    if not isinstance(value, Mapping):
        raise ModelConfigError(f"{name} must be an object, got {value!r}")
    return value


def _contradiction(one: str, value: Any, other: str, other_value: Any) -> ModelConfigError:
    return ModelConfigError(
        f"{one}={value!r} contradicts {other}={other_value!r}; remove the wrong one, or pass it to "
        "--ignore_config"
    )
