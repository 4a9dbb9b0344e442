"""Shapes, random weights and export of the presets."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from qwen import checkpoint
from qwen.checkpoint import RandomWeights
from qwen.export_preset import export_preset
from qwen.families import family_of
from qwen.presets import PRESETS

TINY = [name for name in PRESETS if name.startswith("tiny")]

PUBLISHED = {
    "Qwen2.5-0.5B": 0.494,
    "Qwen3-1.7B": 1.721,
    "Qwen3-8B": 8.191,
    "Qwen3-30B-A3B": 30.532,
    "Qwen3.5-2B": 1.882,
    "Qwen3.5-9B": 8.954,
    "Qwen3.5-27B": 26.896,
    "Qwen3.5-35B-A3B": 34.661,
}
"""Parameters of the text models, in billions."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_the_published_number_of_parameters(name: str) -> None:
    shapes = family_of(PRESETS[name]).tensor_shapes(PRESETS[name]).values()
    assert sum(map(math.prod, shapes)) / 1e9 == pytest.approx(PUBLISHED[name], abs=5e-4)


def test_random_weights_suit_each_tensor() -> None:
    weights = RandomWeights(PRESETS["tiny-qwen3_5-moe"], 0)
    read = {name: weights.read(name).astype(np.float32) for name in weights.shapes()}
    for name, values in read.items():
        if name.endswith((".linear_attn.norm.weight", ".dt_bias")):
            assert (values == 1).all(), name
        elif name.endswith("norm.weight"):  # Stored minus 1.
            assert (values == 0).all(), name
        elif name.endswith(".A_log"):
            assert (values <= math.log(16)).all(), name
        elif not name.endswith(".conv1d.weight"):
            assert values.std() == pytest.approx(0.02, rel=0.3), name


def test_a_large_random_tensor_is_drawn_from_the_same_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "LARGE", 100_000)
    monkeypatch.setattr(checkpoint, "BLOCK", 10_000)
    name = "model.embed_tokens.weight"
    drawn = RandomWeights(PRESETS["tiny"], 0).read(name)
    assert drawn.dtype == ml_dtypes.bfloat16
    values = drawn.astype(np.float64) / 0.02
    assert len(np.unique(values)) > 1000
    assert values.mean() == pytest.approx(0, abs=0.02)
    assert values.std() == pytest.approx(1, abs=0.01)
    assert (values**4).mean() == pytest.approx(3, abs=0.15)
    np.testing.assert_array_equal(RandomWeights(PRESETS["tiny"], 0).read(name), drawn)


@pytest.mark.torch
@pytest.mark.parametrize("values_of_a_file", [200_000, 2_000_000_000])
@pytest.mark.parametrize("name", TINY)
def test_transformers_loads_an_exported_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, values_of_a_file: int
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr("qwen.export_preset.FILE_VALUES", values_of_a_file)
    export_preset(f"random:{name}", tmp_path)
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values()), found
    weights, stored = RandomWeights(PRESETS[name], 0), model.state_dict()
    for tensor in weights.shapes():
        theirs = stored[tensor].float().numpy()
        np.testing.assert_array_equal(theirs, weights.read(tensor).astype(np.float32))
    assert AutoTokenizer.from_pretrained(tmp_path)("1").input_ids
