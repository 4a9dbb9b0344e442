"""Comparison of every family with transformers at each site, in unusual shapes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activation_dataset.format import POOLINGS
from activation_dataset.sites import Site, place_of
from qwen.families import read_config
from qwen.layers.rope import rotary_frequencies
from tests.qwen.comparison import (
    COSINE_BFLOAT16,
    RecordProperty,
    captured_sites,
    differences,
    pooled,
    worst_by_hook_point,
)
from tests.qwen.family_cases import CASES, VOCABULARY, save
from tests.qwen.transformers_model import transformers_sites

pytestmark = pytest.mark.torch

LENGTHS = (1, 300, 2, 63, 64, 65, 128, 17)
"""Lengths that fill two rows, with samples that share a chunk of the delta network or cross
chunks."""

ATTENTION_ONLY, OTHERS = 1e-5, 1e-4
"""Maximum relative L2 error of a vector in float32, |ours - theirs| / |theirs|."""


def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, VOCABULARY, length, dtype=np.int32) for length in LENGTHS]


EVERY_POOLING = {
    *("qwen2, YaRN", "qwen3", "qwen3_moe, first layer dense"),
    *("qwen3_5, delta on top, half of a head rotated", "qwen3_5_moe", "llama, llama3 scaling"),
}
"""One case of each architecture, because pooling does not depend on the shapes of layers."""


@pytest.mark.parametrize("name", CASES)
def test_every_site_is_that_of_transformers(
    name: str, tmp_path: Path, record_property: RecordProperty
) -> None:
    case = CASES[name]
    save(case, tmp_path)
    run, token_ids = transformers_sites(tmp_path, "float32"), prompts()
    theirs = [{site: value[0] for site, value in run(ids[None]).items()} for ids in token_ids]
    for pooling in POOLINGS if name in EVERY_POOLING else ("none",):
        ours = captured_sites(tmp_path, token_ids, pooling, "float32")
        assert ours[0].keys() == theirs[0].keys()
        expected = [{site: pooled(v, pooling) for site, v in each.items()} for each in theirs]
        worst = worst_by_hook_point(ours, expected)
        for point, (error, _) in worst.items():
            record_property(f"{pooling}_worst_relative_error_{point}", float(error))
        limit = ATTENTION_ONLY if case.exact else OTHERS
        assert max(error for error, _ in worst.values()) <= limit, worst


@pytest.mark.parametrize("name", sorted(EVERY_POOLING))
def test_bfloat16_is_as_near_to_float32_as_that_of_transformers(
    name: str, tmp_path: Path, record_property: RecordProperty
) -> None:
    """Both can be far from float32 if rounding changes experts or a delta network amplifies it.

    The test therefore counts tokens whose experts differ from float32, and compares the errors of
    both.
    """
    case = CASES[name]
    save(case, tmp_path)
    token_ids = prompts()
    exact, theirs = (
        [{s: v[0] for s, v in run(ids[None]).items()} for ids in token_ids]
        for run in (transformers_sites(tmp_path, dtype) for dtype in ("float32", "bfloat16"))
    )
    ours = captured_sites(tmp_path, token_ids, "none", "bfloat16")
    for point in COSINE_BFLOAT16:
        sites = [site for site in exact[0] if place_of(site)[1] == point]
        if not sites:
            continue
        mine, others = (
            np.concatenate(
                [
                    differences(found[site], expected[site])[1]
                    for found, expected in zip(each, exact, strict=True)
                    for site in sites
                ]
            )
            for each in (ours, theirs)
        )
        for whose, cosines in (("ours", mine), ("theirs", others)):
            record_property(f"{whose}_least_cosine_{point}", float(cosines.min()))
            record_property(f"{whose}_mean_cosine_{point}", float(cosines.mean()))
        if case.exact:
            assert mine.min() >= COSINE_BFLOAT16[point], point
        assert np.median(mine) >= 0.999, point
        assert 1 - mine.mean() <= 1.2 * (1 - others.mean()) + 1e-5, point
    if count := case.others.get("num_experts_per_tok"):
        for whose, found in (("ours", ours), ("theirs", theirs)):
            flips = sum(map(lambda a, b: _other_experts(a, b, count), found, exact))
            record_property(f"{whose}_tokens_with_other_experts", flips)
            assert flips <= sum(LENGTHS) / 5


def _other_experts(
    found: Mapping[Site, np.ndarray], exact: Mapping[Site, np.ndarray], count: int
) -> int:
    """Count the tokens whose experts differ in any layer."""
    routers = [site for site in exact if place_of(site)[1] == "router_logits"]
    chosen = (
        [np.sort(np.argsort(-each[site], axis=1)[:, :count]) for site in routers]
        for each in (found, exact)
    )
    differs = [(a != b).any(axis=1) for a, b in zip(*chosen, strict=True)]
    return int(np.any(differs, axis=0).sum())


QWEN2_5_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3_8B = QWEN2_5_7B | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 4096,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
    "vocab_size": 151936,
}
LLAMA_3_1 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "vocab_size": 128256,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
QWEN3_5 = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "text_config": {
        "head_dim": 256,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "model_type": "qwen3_5_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "num_key_value_heads": 4,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "vocab_size": 248320,
    },
    "vision_config": {},
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen2.5": QWEN2_5_7B,
    "Qwen2.5, YaRN": QWEN2_5_7B | {"rope_scaling": {**YARN, "type": "yarn"}},
    "Qwen2.5, YaRN by 3": QWEN2_5_7B | {"rope_scaling": {**YARN, "factor": 3.0, "type": "yarn"}},
    "Qwen3": QWEN3_8B,
    "Qwen3, YaRN": QWEN3_8B | {"rope_scaling": {**YARN, "rope_type": "yarn"}},
    "Qwen3.5": QWEN3_5,
    "Llama 3.1": LLAMA_3_1,
}
"""RoPE settings of published `config.json` files, in their original spelling."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_rotary_frequencies_of_published_configs(name: str) -> None:
    import transformers

    fields = PUBLISHED[name]
    theirs = transformers.AutoConfig.for_model(**fields).get_text_config()
    module = importlib.import_module(type(theirs).__module__.replace("configuration", "modeling"))
    (rotary,) = (
        value
        for key, value in vars(module).items()
        if key.endswith("RotaryEmbedding") and "Vision" not in key
    )
    expected = rotary(config=theirs)
    frequencies, scaling = rotary_frequencies(read_config(fields))
    # Angles at high positions multiply an error of the frequencies, so only powers may round once.
    np.testing.assert_array_max_ulp(frequencies, expected.inv_freq.numpy(), maxulp=1)
    assert np.count_nonzero(frequencies != expected.inv_freq.numpy()) <= 1
    assert scaling == pytest.approx(expected.attention_scaling, rel=1e-7)
