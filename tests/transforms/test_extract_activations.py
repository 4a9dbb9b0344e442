import os
import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from activation_dataset.prompts import Prompt
from activation_dataset.sites import Site
from qwen.extractor import ActivationExtractor
from tests.activation_dataset.synthetic import text_prompt
from tests.conftest import COMPILED
from transforms.assign_shards import rank
from transforms.extract_activations import (
    ExtractorSettings,
    LayerBlock,
    extract_shard,
    ordered_prompts,
)

LAYERS = (0, 2)


def settings(**changed: Any) -> ExtractorSettings:
    values: dict[str, Any] = {
        "model_path": "random:tiny",
        "weights_fingerprint": "random:tiny, seed 0",
        "layers": LAYERS,
        "pooling": "last",
        "compute_dtype": "float32",
        "storage_dtype": "float32",
        "batch_size": 1,
        "mesh_shape": None,
        "compile_cache": COMPILED.name,
    }
    return ExtractorSettings(**(values | changed))


@pytest.fixture(scope="module")
def extractors() -> dict[str, ActivationExtractor]:
    return {pooling: settings(pooling=pooling).build() for pooling in ("last", "none")}


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """More than one step of 512 slots holds, of very different lengths."""
    lengths = [1, 300, 2, 40, 512, 7, 100, 250, 33]
    generator = np.random.default_rng(0)
    return [
        text_prompt(f"a.json#{n}/0", f"{n}", generator.integers(0, 1000, length, dtype=np.int32))
        for n, length in enumerate(lengths)
    ]


def test_a_shard_is_put_in_order_however_it_arrives(prompts: list[Prompt]):
    expected = sorted((each.sample_id for each in prompts), key=rank)
    for seed in range(5):
        arrived = random.Random(seed).sample(prompts, len(prompts))
        assert [each.sample_id for each in ordered_prompts(iter(arrived))] == expected


@pytest.mark.parametrize("pooling", ["last", "none"])
def test_the_blocks_hold_every_sample_of_every_layer(prompts, extractors, pooling: str):
    extractor = extractors[pooling]
    blocks = list(extract_shard(5, 6, prompts, extractor))
    by_layer: dict[Site, list[LayerBlock]] = defaultdict(list)
    for block in blocks:
        by_layer[block.layer].append(block)
    assert set(by_layer) == set(LAYERS)
    orders = []
    for ours in by_layer.values():
        assert len(ours) > 1
        assert [block.is_last for block in ours] == [False] * (len(ours) - 1) + [True]
        assert {(block.shard, block.num_shards) for block in ours} == {(5, 6)}
        orders.append([sample.sample_id for block in ours for sample in block.samples])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(prompt.sample_id for prompt in prompts)


@pytest.mark.parametrize("pooling", ["last", "none"])
def test_each_sample_gets_its_own_vectors(prompts, extractors, pooling: str):
    extractor = extractors[pooling]
    tokens = {prompt.sample_id: prompt.token_ids for prompt in prompts}
    alone = {}
    for prompt in prompts:
        (captured,) = extractor.extract([prompt.token_ids])
        alone[prompt.sample_id] = captured.layers
    for block in extract_shard(0, 1, prompts, extractor):
        ends = np.cumsum(block.vector_counts)
        rows = np.split(block.vectors, ends[:-1])
        for sample, vectors in zip(block.samples, rows, strict=True):
            expected = alone[sample.sample_id][block.layer]
            np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
            whole = tokens[sample.sample_id]
            assert sample.num_tokens == len(whole)
            ids = whole if pooling == "none" else whole[-1:]
            assert np.array_equal(sample.token_ids, ids)
            assert len(vectors) == (len(whole) if pooling == "none" else 1)


def test_a_shard_without_prompts_has_no_blocks(extractors):
    assert list(extract_shard(0, 1, [], extractors["last"])) == []


def test_a_worker_with_other_weights_refuses_to_start():
    with pytest.raises(
        ValueError, match=r"random:tiny: this worker sees weights random:tiny, seed 0, the run was"
    ):
        settings(weights_fingerprint="model.safetensors: AAAAAA==").build()


def test_the_environment_is_set_unless_it_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OURS", "kept")
    monkeypatch.delenv("THEIRS", raising=False)
    wrong = settings(environment=(("OURS", "lost"), ("THEIRS", "set")), weights_fingerprint="")
    with pytest.raises(ValueError, match="this worker sees"):
        wrong.build()
    assert (os.environ["OURS"], os.environ["THEIRS"]) == ("kept", "set")
    monkeypatch.delenv("THEIRS")
