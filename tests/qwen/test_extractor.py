from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from activation_dataset.format import POOLINGS, Pooling
from activation_dataset.sites import HOOK_POINTS, HookPoint, Site, site_of
from qwen import extractor as extractor_module
from qwen.extractor import ActivationExtractor, open_extractor
from qwen.settings import ExtractorSettings
from qwen.source import open_model
from tests.qwen.checkpoints import SMALL, varied_weights, write_checkpoint
from tests.qwen.statistics import assert_close_statistics

TEXTS = [
    "3 0 3\n0 3 0\n",
    "1",
    "input\n" + "0 1 2 3 4 5 6 7 8 9\n" * 40,
    "output\n7 7\n7 7\n",
    "éè \U0001f600\n\n\n",
]
LENGTHS = (40, 1, 300, 7, 1, 512, 129, 256)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def prompts(lengths: Sequence[int] = LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, SMALL.vocab_size, length, dtype=np.int32) for length in lengths]


def tiny(layers: Sequence[int], **options: Any) -> ActivationExtractor:
    return ActivationExtractor.load(
        "random:tiny", layers, compute_dtype="float32", batch_size=1, **options
    )


def load(folder: Path, layers: Sequence[int], **options: Any) -> ActivationExtractor:
    options = {"compute_dtype": "float32", "batch_size": 1, **options}
    return ActivationExtractor.load(str(folder), layers, **options)


def by_sample(
    extractor: ActivationExtractor, token_ids: Sequence[np.ndarray]
) -> list[dict[Site, np.ndarray]]:
    """For each sample, by site, [vectors, hidden]; every sample must come exactly once.

    Checks the statistics of every step too.
    """
    found: dict[int, dict[Site, np.ndarray]] = {}
    for captured in extractor.extract(token_ids):
        assert len(captured.samples) == len(captured.vector_counts)
        assert not found.keys() & set(captured.samples)
        ends = np.cumsum(captured.vector_counts)
        for site, vectors in captured.vectors.items():
            assert vectors.shape == (ends[-1], extractor.hidden_size)
            assert_close_statistics(captured.statistics[site], vectors)
            for sample, part in zip(captured.samples, np.split(vectors, ends[:-1]), strict=True):
                found.setdefault(sample, {})[site] = part
    return [found[sample] for sample in range(len(token_ids))]


def assert_close(found: np.ndarray, expected: np.ndarray, relative_error: float = 1e-5) -> None:
    assert found.shape == expected.shape
    a, b = found.astype(np.float64), expected.astype(np.float64)
    errors = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)
    assert errors.max() <= relative_error


# From a notebook


def test_the_three_lines_of_the_module_s_introduction() -> None:
    introduction = extractor_module.__doc__ or ""
    lines = re.search(r"In a notebook::\n\n((?:    .*\n)+)", introduction)
    assert lines is not None
    code = lines[1].replace("Qwen/Qwen2.5-0.5B", "random:tiny").replace("range(10, 24)", "range(3)")
    assert len(code.splitlines()) == 3
    names: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in code.splitlines()), names)
    activations = names["activations"]
    assert list(activations) == [0, 1, 2]
    assert all(array.shape == (1, 64) for array in activations.values())
    assert all(array.dtype == np.float32 for array in activations.values())


def test_texts_in_layers_of_rows_out_in_the_order_of_the_texts() -> None:
    extractor = tiny([1, 3])
    together = extractor(TEXTS)
    assert isinstance(together, dict)
    assert set(together) == {1, 3}
    for layer, rows in together.items():
        assert rows.shape == (len(TEXTS), 64)
        for row, text in zip(rows, TEXTS, strict=True):
            alone = extractor([text])
            assert isinstance(alone, dict)
            assert_close(row[None], alone[layer])


def test_every_token_gives_arrays_for_each_text() -> None:
    extractor = tiny([0, 2], pooling="none")
    found = extractor(TEXTS)
    assert isinstance(found, list)
    tokenizer = extractor.source.tokenizer()
    for activations, text in zip(found, TEXTS, strict=True):
        tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert {layer: a.shape for layer, a in activations.items()} == {
            0: (tokens, 64),
            2: (tokens, 64),
        }


def test_one_text_is_not_taken_for_its_letters() -> None:
    with pytest.raises(TypeError, match="texts is one string; give a list of them"):
        tiny([0])("The residual stream")


# Layers and poolings


@pytest.fixture(scope="module")
def every_token(checkpoint: Path) -> list[dict[Site, np.ndarray]]:
    return by_sample(load(checkpoint, range(3), pooling="none"), prompts())


@pytest.fixture(scope="module")
def every_hook_point(checkpoint: Path) -> list[dict[Site, np.ndarray]]:
    return by_sample(load(checkpoint, range(3), pooling="none", hook_points=HOOK_POINTS), prompts())


@pytest.mark.parametrize(
    "hook_points", [["resid_post", "mlp_out"], ["attn_out"], ["resid_pre", "resid_mid"]]
)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_any_choice_of_hook_points_captures_the_same_vectors(
    checkpoint: Path,
    every_hook_point: list[dict[Site, np.ndarray]],
    pooling: Pooling,
    hook_points: list[HookPoint],
) -> None:
    captured = by_sample(
        load(checkpoint, [0, 2], pooling=pooling, hook_points=hook_points), prompts()
    )
    for found, expected in zip(captured, every_hook_point, strict=True):
        assert found.keys() == {site_of(layer, each) for layer in (0, 2) for each in hook_points}
        for site, vectors in found.items():
            tokens = expected[site]
            if pooling != "none":
                tokens = tokens[-1:] if pooling == "last" else tokens.mean(axis=0, keepdims=True)
            assert_close(vectors, tokens)


def test_what_attention_and_mlp_add_leads_from_one_residual_stream_to_the_next(
    every_hook_point: list[dict[Site, np.ndarray]],
) -> None:
    for found in every_hook_point:
        for layer in range(3):
            pre, attn_out, mid, mlp_out = (
                found[f"blocks.{layer}.hook_{each}"] for each in HOOK_POINTS[:-1]
            )
            assert_close(mid, pre + attn_out)
            assert_close(found[layer], mid + mlp_out)
            if layer:
                np.testing.assert_array_equal(pre, found[layer - 1])


def test_the_last_layer_is_captured_before_the_final_norm(
    tmp_path: Path, every_token: list[dict[Site, np.ndarray]]
) -> None:
    tensors = varied_weights(SMALL)
    tensors["model.norm.weight"] *= 100
    changed = by_sample(
        load(write_checkpoint(tmp_path, SMALL, tensors), [2], pooling="none"), prompts()
    )
    for found, expected in zip(changed, every_token, strict=True):
        np.testing.assert_array_equal(found[2], expected[2])


# What is stored


@pytest.mark.parametrize(
    ("pooling", "compute_dtype"), [("last", "bfloat16"), ("mean", "bfloat16"), ("none", "float32")]
)
def test_storing_bfloat16_rounds_what_float32_would_store(
    checkpoint: Path, pooling: Pooling, compute_dtype: str
) -> None:
    options = {"compute_dtype": compute_dtype}
    wide = by_sample(
        load(checkpoint, [1], pooling=pooling, storage_dtype="float32", **options), prompts()
    )
    narrow = by_sample(
        load(checkpoint, [1], pooling=pooling, storage_dtype="bfloat16", **options), prompts()
    )
    for a, b in zip(wide, narrow, strict=True):
        assert a[1].dtype.name == "float32"
        assert b[1].dtype.name == "bfloat16"
        np.testing.assert_array_equal(a[1].astype(ml_dtypes.bfloat16), b[1])


def test_the_mean_of_bfloat16_activations_keeps_the_precision_of_float32(checkpoint: Path) -> None:
    [found] = by_sample(
        load(checkpoint, [1], pooling="mean", compute_dtype="bfloat16"), prompts([300])
    )
    assert not np.array_equal(found[1], found[1].astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("pooling", "compute_dtype"), [("last", "float32"), ("mean", "bfloat16"), ("none", "float32")]
)
def test_an_activation_that_is_not_finite_is_not_hidden(
    tmp_path: Path, pooling: Pooling, compute_dtype: str
) -> None:
    tensors = varied_weights(SMALL)
    tensors["model.embed_tokens.weight"][5] = np.nan
    tensors["model.layers.1.mlp.down_proj.weight"][3] = np.inf
    extractor = load(
        write_checkpoint(tmp_path, SMALL, tensors),
        [0, 1],
        pooling=pooling,
        compute_dtype=compute_dtype,
    )
    [finite] = by_sample(extractor, [np.array([6, 7], np.int32)])
    assert np.isfinite(finite[0]).all()
    assert not np.isfinite(finite[1])[:, 3].any()
    assert np.isfinite(np.delete(finite[1], 3, axis=1)).all()
    [broken] = by_sample(extractor, [np.array([6, 5], np.int32)])
    assert not np.isfinite(broken[0][-1]).any()


# Samples


@pytest.mark.parametrize("pooling", POOLINGS)
def test_samples_come_in_the_order_that_is_told_beforehand(
    checkpoint: Path, pooling: Pooling
) -> None:
    extractor = load(checkpoint, [0], pooling=pooling)
    captured = list(extractor.extract(prompts()))
    order = [sample for part in captured for sample in part.samples]
    assert order == extractor.order(LENGTHS)
    assert sorted(order) == list(range(len(LENGTHS)))
    counts = [count for part in captured for count in part.vector_counts]
    assert counts == [LENGTHS[s] if pooling == "none" else 1 for s in order]
    assert len(captured) > 1


def test_programs_compiled_while_the_weights_load_give_the_same_bytes(checkpoint: Path) -> None:
    settings = ExtractorSettings(str(checkpoint), (2,), compute_dtype="float32", batch_size=1)
    ahead = open_extractor(settings, lengths_to_come=LENGTHS)
    for a, b in zip(
        by_sample(ahead, prompts()), by_sample(load(checkpoint, [2]), prompts()), strict=True
    ):
        np.testing.assert_array_equal(a[2], b[2])


@pytest.mark.parametrize(
    "ids", [[], [64], [-1], [0, 1, 64], [2**31 - 1]], ids=["empty", "64", "-1", "last", "huge"]
)
def test_a_sample_that_cannot_be_embedded_is_named(checkpoint: Path, ids: list[int]) -> None:
    extractor = load(checkpoint, [0])
    token_ids = [np.array([1], np.int32), np.array(ids, np.int32)]
    with pytest.raises(
        ValueError, match=r"sample 1: expected at least one token id, all in 0\.\.63"
    ):
        list(extractor.extract(token_ids))


# Arguments


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "no layer to capture"),
        ([24], "layers 24 do not exist: this model has 24 layers, 0 to 23"),
        ([-1, 3, 99], "layers -1, 99 do not exist"),
        ([1, 2, 1], "a layer is named twice: 1, 1, 2"),
    ],
)
def test_layers_that_do_not_exist(layers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActivationExtractor.load("random:tiny", layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling must be one of last, mean, none, got 'max'"),
        ({"compute_dtype": "float16"}, "compute_dtype must be .*float32, bfloat16, got 'float16'"),
        ({"storage_dtype": "int8"}, "storage_dtype must be .*float32, bfloat16, got 'int8'"),
        ({"batch_size": 0}, "must be positive, got 0"),
        ({"mesh_shape": (1, 3)}, "mesh_shape 1,3 needs 3 devices"),
    ],
)
def test_an_option_that_is_not_one(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActivationExtractor.load("random:tiny", [0], **options)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_sample_that_is_not_finite_leaves_those_in_its_row_alone(
    tmp_path: Path, pooling: Pooling
):
    tensors = varied_weights(SMALL)
    tensors["model.embed_tokens.weight"][5] = np.inf
    extractor = load(write_checkpoint(tmp_path, tensors=tensors), [0, 1], pooling=pooling)
    samples = [np.where(ids == 5, 6, ids) for ids in prompts((40, 30, 50))]
    samples[1][20] = 5
    found = by_sample(extractor, samples)
    assert not np.isfinite(found[1][1]).all()
    for sample in (0, 2):
        (alone,) = by_sample(extractor, [samples[sample]])
        for layer in (0, 1):
            assert np.isfinite(found[sample][layer]).all()
            assert_close(found[sample][layer], alone[layer])


@pytest.mark.parametrize("storage_dtype", ["float32", "bfloat16"])
def test_statistics_of_values_whose_squares_overflow(tmp_path: Path, storage_dtype: str) -> None:
    tensors = varied_weights(SMALL)
    tensors["model.embed_tokens.weight"] *= np.float32(1e30)
    extractor = load(
        write_checkpoint(tmp_path, tensors=tensors),
        [0],
        hook_points=["resid_pre"],
        storage_dtype=storage_dtype,
    )
    [captured] = extractor.extract(prompts((40, 30, 50)))
    [statistics] = captured.statistics.values()
    assert statistics.mean_norm > 1e30
    assert_close_statistics(statistics, captured.vectors["blocks.0.hook_resid_pre"])


def test_a_worker_with_other_weights_refuses_to_start(checkpoint: Path) -> None:
    source = open_model(str(checkpoint))
    settings = ExtractorSettings(str(checkpoint), (1,), weights_fingerprint="model: AAAAAA==")
    with pytest.raises(ValueError, match=r"this worker sees weights .* was started with .*AAAAAA"):
        open_extractor(settings)
    settings = replace(settings, weights_fingerprint=source.weights_fingerprint())
    assert open_extractor(settings).ops in ("xla", "amx")
