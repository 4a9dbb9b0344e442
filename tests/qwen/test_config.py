from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import transformers

from qwen.config import PRESETS, ModelConfigError
from qwen.families import FAMILIES, read_config
from tests.qwen.checkpoints import SMALL, config_fields

PUBLISHED_QWEN2_5_0_5B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""The shape in https://huggingface.co/Qwen/Qwen2.5-0.5B/blob/main/config.json"""


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def rewritten_by_transformers(fields: dict[str, Any]) -> dict[str, Any]:
    return transformers.Qwen2Config.from_dict(dict(fields)).to_dict()


def test_the_preset_is_the_published_config_also_as_transformers_rewrites_it() -> None:
    rewritten = rewritten_by_transformers(PUBLISHED_QWEN2_5_0_5B)
    assert "rope_theta" not in rewritten
    for fields in (PUBLISHED_QWEN2_5_0_5B, rewritten):
        assert read_config(fields) == PRESETS["Qwen2.5-0.5B"]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1e4},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1e4},
        {},
    ],
)
def test_every_spelling_of_rope_means_what_it_means_to_transformers(rope: dict[str, Any]) -> None:
    fields = without(config_fields(SMALL), "rope_theta") | rope
    theirs = rewritten_by_transformers(fields)["rope_parameters"]["rope_theta"]
    assert read_config(fields).rope_theta == theirs == (5e5 if rope else 1e4)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": ["qwen2"]}, ["model_type=['qwen2']", "'qwen2'"]),
        ({"hidden_act": "gelu"}, ["hidden_act='gelu'", "'silu'"]),
        ({"use_sliding_window": True}, ["use_sliding_window=True", "False"]),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            ["layer_types", "'sliding_attention'", "'full_attention'"],
        ),
        ({"rope_scaling": {"type": "yarn"}}, ["rope_scaling.rope_type='yarn'", "'default'"]),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            ["rope_parameters", "'full_attention'"],
        ),
        ({"rope_scaling": "yarn"}, ["rope_scaling", "must be an object", "'yarn'"]),
        ({"rope_theta": float("nan")}, ["rope_theta", "positive", "nan"]),
        ({"rms_norm_eps": None}, ["rms_norm_eps", "positive", "None"]),
        ({"hidden_size": "32", "head_dim": None}, ["hidden_size", "positive integer", "'32'"]),
        ({"num_attention_heads": 0, "head_dim": None}, ["num_attention_heads", "positive integer"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads (4)", "num_key_value_heads (3)"]),
        ({"head_dim": 7}, ["head_dim", "even", "7"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings", "'no'"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_run_faithfully_is_refused_with_the_field_and_its_value(
    changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ModelConfigError) as raised:
        read_config(config_fields(SMALL, **changes), "models/a/config.json")
    message = str(raised.value)
    assert message.startswith("models/a/config.json: ")
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", ["model_type", "vocab_size", "hidden_size"])
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(ModelConfigError, match=rf"^config\.json: .*'{name}' is missing"):
        read_config(without(config_fields(SMALL), name))


def test_flops_of_qwen2_5_0_5b() -> None:
    """Its trunk has 0.358 G parameters, each used in one multiplication and addition per token."""
    config = PRESETS["Qwen2.5-0.5B"]
    flops = config.num_hidden_layers * config.layer_flops_per_token
    assert flops == pytest.approx(0.716e9, rel=2e-3)
    assert config.attention_flops(10) == 4 * 14 * 64 * 10


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_tensor_of_a_layer_makes_one_parameter(model_type: str) -> None:
    family, config = FAMILIES[model_type], replace(SMALL, model_type=model_type)
    prefix = family.layer_prefix.format(0)
    tensors = {name for name in family.tensor_shapes(config) if name.startswith(prefix)}
    used = [prefix + name for source in family.layer_parameters.values() for name in source.tensors]
    assert sorted(used) == sorted(tensors)
