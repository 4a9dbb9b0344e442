from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import pytest
import transformers
from flax import nnx

from qwen.config import ModelConfigError
from qwen.decoder import Decoder
from qwen.families import family_of, read_config
from qwen.presets import PRESETS, preset_file
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
"""Fields of https://huggingface.co/Qwen/Qwen2.5-0.5B/blob/main/config.json."""


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
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
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
        ({"use_sliding_window": "yes"}, ["use_sliding_window='yes'", "False"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "3 layers", "['full_attention']"]),
        (
            {"layer_types": ["linear_attention"] * 3},
            ["layer_types", "'linear_attention'", "'full_attention'"],
        ),
        (
            {"layer_types": ["sliding_attention"] * 3},
            ["layer_types", "'sliding_attention'", "use_sliding_window is False"],
        ),
        (
            {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 0},
            ["sliding_window", "positive integer", "0"],
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4},
            ["rope_theta=10000.0", "rope_parameters.rope_theta=500000.0", "--ignore_config"],
        ),
        (
            {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 5e5}},
            ["rope_scaling=", "rope_parameters=", "--ignore_config"],
        ),
        (
            {"architectures": ["Qwen2BiModel"]},
            ["architectures", "'Qwen2BiModel'", "--ignore_config architectures"],
        ),
        ({"rope_scaling": {"type": "dynamic"}}, ["rope_scaling.rope_type='dynamic'", "'yarn'"]),
        ({"rope_scaling": {"type": "yarn"}}, ["rope_scaling.factor", "positive", "None"]),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, ["factor", "nan"]),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4, "mscale": 2}},
            ["rope_scaling.mscale", "'yarn'"],
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4, "truncate": "no"}},
            ["truncate='no'", "True, False"],
        ),
        ({"rope_scaling": {"factor": 4.0}}, ["rope_scaling.factor", "'default'"]),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            ["rope_parameters.full_attention"],
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor=0.5"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5"]),
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
def test_an_unsupported_config_is_refused_with_the_field_and_its_value(
    changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(ModelConfigError) as raised:
        read_config(config_fields(SMALL, **changes), "models/a/config.json")
    message = str(raised.value)
    assert message.startswith("models/a/config.json: ")
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("field", "described"),
    [
        ({"is_causal": False}, "is_causal=false (tokens would attend to later tokens)"),
        ({"is_causal": None}, "is_causal=null"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=true"),
        ({"auto_map": {"AutoModel": "modeling.M"}}, 'auto_map={"AutoModel": "modeling.M"} (the'),
        ({"quantization_config": {"bits": 4, "quant_method": "awq"}}, 'quantization_config="awq"'),
        ({"quantization": {"group_size": 64, "bits": 4}}, 'quantization={"group_size": 64'),
        ({"per_layer_config": {"0": {"hidden_size": 8}}}, "per_layer_config="),
        ({"pruned_heads": {"0": [1]}}, 'pruned_heads={"0": [1]}'),
        ({"attention_bias": True}, "attention_bias=true"),
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config="),
        ({"a_field_of_tomorrow": "x" * 500}, 'a_field_of_tomorrow="xxx'),
    ],
)
def test_a_field_that_is_not_understood_is_refused_unless_it_is_named(
    field: dict[str, Any], described: str
) -> None:
    fields, (name,) = config_fields(SMALL, **field), field
    with pytest.raises(ModelConfigError) as raised:
        read_config(fields | {"another": 1})
    message = str(raised.value)
    assert described in message
    assert f"--ignore_config {name},another" in message
    assert len(message) < 400
    assert read_config(fields, ignored=[name]) == SMALL


def test_unused_fields_of_transformers_are_accepted() -> None:
    """Cover all fields of its model and generation configurations, with harmless values."""
    unused = {
        **dict.fromkeys(transformers.GenerationConfig()._get_default_generation_params(), 7),
        **transformers.PreTrainedConfig.from_dict({"num_labels": 3}).to_dict(),
        "eos_token_id": [1, 2],
        "attention_dropout": 0.5,
        "_name_or_path": "a/b",
        "is_causal": True,
        "quantization_config": None,
        "rope_scaling": None,
        "auto_map": {},
        "use_sliding_window": False,
        "sliding_window": 8,
        "max_window_layers": 1,
        "architectures": ["Qwen2ForSequenceClassification"],
    }
    fields = config_fields(SMALL) | unused | {"model_type": "qwen2"}
    assert read_config(fields) == SMALL


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True},
        {"use_sliding_window": True, "max_window_layers": 3},
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": None},
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
        {"use_sliding_window": True, "max_window_layers": 0},
        {"use_sliding_window": True, "layer_types": ["full_attention"] * 3, "max_window_layers": 0},
        {
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ],
)
def test_the_layers_that_have_a_window_are_those_of_transformers(changes: dict[str, Any]) -> None:
    fields = config_fields(SMALL, **changes)
    theirs = rewritten_by_transformers(fields)
    config = read_config(fields)
    kinds = theirs["layer_types"]
    assert list(config.layer_types or ["full_attention"] * 3) == kinds
    windows = [theirs["sliding_window"] if kind == "sliding_attention" else None for kind in kinds]
    assert [config.kind(layer).window for layer in range(3)] == windows
    assert read_config(theirs) == config


@pytest.mark.parametrize("name", ["model_type", "vocab_size", "hidden_size"])
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(ModelConfigError, match=rf"^config\.json: .*'{name}' is missing"):
        read_config(without(config_fields(SMALL), name))


PRESET_OF = {config.model_type: name for name, config in PRESETS.items()}
"""One preset by family, preferably a tiny one."""


@pytest.mark.parametrize("model_type", PRESET_OF)
def test_an_absent_field_means_what_it_means_to_transformers_or_is_missed(model_type: str) -> None:
    """Exclude `max_position_embeddings`, whose default here is the same for all families."""
    fields = json.loads(preset_file(PRESET_OF[model_type]).read_text())
    for name in fields:
        shorter = without(fields, name)
        try:
            ours = read_config(shorter)
        except ModelConfigError:
            continue
        theirs = transformers.CONFIG_MAPPING[model_type].from_dict(dict(shorter)).to_dict()
        expected = read_config({"architectures": None, **theirs})
        limit = ours.max_position_embeddings
        assert ours == replace(expected, max_position_embeddings=limit), name


@pytest.mark.parametrize("name", PRESETS)
def test_the_tensors_of_a_layer_make_its_parameters(name: str) -> None:
    """Cover every kind of layer; output gates are part of the query tensor."""
    config = PRESETS[name]
    family = family_of(config)
    model = nnx.eval_shape(lambda: Decoder(config, config.num_hidden_layers, jnp.dtype("float32")))
    for number, layer in enumerate(model.layers):
        parameters = {path for path, _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))}
        sources = family.layer_parameters(config, number)
        assert parameters == sources.keys()
        prefix = f"model.layers.{number}."
        stored = {each for each in family.tensor_shapes(config) if each.startswith(prefix)}
        assert stored == {prefix + each for source in sources.values() for each in source.names}
