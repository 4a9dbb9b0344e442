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
from qwen.source import OtherWorkerError
from tests.conftest import COMPILED
from tests.qwen.checkpoints import SMALL, varied_weights, write_checkpoint
from tests.qwen.comparison import STREAM, assert_close_statistics, by_sample

TEXTS = ["3 0 3\n0 3 0\n", "1", "input\n" + "0 1 2 3 4 5 6 7 8 9\n" * 40, "éè \U0001f600\n\n\n"]
LENGTHS = (40, 1, 300, 7, 1, 512, 129, 256)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def prompts(lengths: Sequence[int] = LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, SMALL.vocab_size, length, dtype=np.int32) for length in lengths]


def load(model_path: Path | str, layers: Sequence[int], **options: Any) -> ActivationExtractor:
    options = {"compute_dtype": "float32", "batch_size": 1, **options}
    return ActivationExtractor.load(str(model_path), layers, **options)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    a, b = found.astype(np.float64), expected.astype(np.float64)
    errors = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)
    assert errors.max() <= 1e-5


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
    extractor = load("random:tiny", [1, 3])
    together = extractor(TEXTS)
    assert isinstance(together, dict)
    assert set(together) == {1, 3}
    for layer, rows in together.items():
        assert rows.shape == (len(TEXTS), 64)
        for row, text in zip(rows, TEXTS, strict=True):
            alone = extractor([text])
            assert isinstance(alone, dict)
            assert_close(row[None], alone[layer])
    every_token = load("random:tiny", [3], pooling="none")(TEXTS)
    assert isinstance(every_token, list)
    for of_text, last in zip(every_token, together[3], strict=True):
        assert_close(of_text[3][-1:], last[None])
    with pytest.raises(TypeError, match="single string"):
        extractor(TEXTS[0])


def test_paths_may_be_objects_and_layers_all_of_them(checkpoint: Path) -> None:
    extractor = ActivationExtractor.load(checkpoint, "all", compile_cache=Path(COMPILED.name))
    assert extractor.sites == (0, 1, 2)
    assert extractor.settings.model_path == str(checkpoint)
    settings = ExtractorSettings(checkpoint, "all", hook_points=("mlp_out",))  # type: ignore[arg-type]
    assert open_extractor(settings).sites == tuple(f"blocks.{n}.hook_mlp_out" for n in range(3))
    numbers: Any = np.array([2, 0])
    assert replace(settings, layers=numbers).layers == (0, 2)
    with pytest.raises(ValueError, match="with_layers_of"):
        _ = settings.sites
    assert settings.with_layers_of(2).layers == (0, 1)


# Layers and poolings


@pytest.fixture(scope="module")
def every_hook_point(checkpoint: Path) -> list[dict[Site, np.ndarray]]:
    points = [point for point in HOOK_POINTS if SMALL.width(0, point)]
    return by_sample(load(checkpoint, range(3), pooling="none", hook_points=points), prompts())


@pytest.mark.parametrize(
    "hook_points", [["mlp_out"], ["resid_post", "attn_out", "resid_pre"], ["mlp_in", "k", "q", "z"]]
)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_any_choice_of_hook_points_captures_the_same_vectors(
    checkpoint: Path,
    every_hook_point: list[dict[Site, np.ndarray]],
    pooling: Pooling,
    hook_points: list[HookPoint],
) -> None:
    extractor = load(checkpoint, [0, 2], pooling=pooling, hook_points=hook_points)
    for found, expected in zip(by_sample(extractor, prompts()), every_hook_point, strict=True):
        assert found.keys() == {site_of(layer, each) for layer in (0, 2) for each in hook_points}
        for site, vectors in found.items():
            tokens = expected[site]
            if pooling != "none":
                tokens = tokens[-1:] if pooling == "last" else tokens.mean(axis=0, keepdims=True)
            assert_close(vectors, tokens)


def test_attention_and_mlp_outputs_sum_to_the_next_residual_stream(
    every_hook_point: list[dict[Site, np.ndarray]],
) -> None:
    for found in every_hook_point:
        for layer in range(3):
            pre, attn_out, mid, mlp_out = (
                found[f"blocks.{layer}.hook_{each}"] for each in STREAM[:-1]
            )
            assert_close(mid, pre + attn_out)
            assert_close(found[layer], mid + mlp_out)
            if layer:
                np.testing.assert_array_equal(pre, found[layer - 1])


# What is stored


@pytest.mark.parametrize(
    ("pooling", "compute_dtype"), [("last", "bfloat16"), ("mean", "bfloat16"), ("none", "float32")]
)
def test_storing_bfloat16_rounds_what_float32_would_store(
    checkpoint: Path, pooling: Pooling, compute_dtype: str
) -> None:
    options = {"pooling": pooling, "compute_dtype": compute_dtype}
    wide, narrow = (
        by_sample(load(checkpoint, [1], storage_dtype=dtype, **options), prompts())
        for dtype in ("float32", "bfloat16")
    )
    kept = []
    for a, b in zip(wide, narrow, strict=True):
        assert (a[1].dtype.name, b[1].dtype.name) == ("float32", "bfloat16")
        np.testing.assert_array_equal(a[1].astype(ml_dtypes.bfloat16), b[1])
        kept.append(np.array_equal(a[1], b[1].astype(np.float32)))
    # The mean of bfloat16 activations keeps the precision of float32.
    assert all(kept) == (pooling == "last")


@pytest.mark.parametrize(
    ("pooling", "compute_dtype"), [("last", "float32"), ("mean", "bfloat16"), ("none", "float32")]
)
def test_an_activation_that_is_not_finite_is_not_hidden(
    tmp_path: Path, pooling: Pooling, compute_dtype: str
) -> None:
    tensors = varied_weights(SMALL)
    tensors["model.embed_tokens.weight"][5] = np.nan
    tensors["model.layers.1.mlp.down_proj.weight"][3] = np.inf
    folder = write_checkpoint(tmp_path, SMALL, tensors)
    extractor = load(folder, [0, 1], pooling=pooling, compute_dtype=compute_dtype)
    [finite] = by_sample(extractor, [np.array([6, 7], np.int32)])
    assert np.isfinite(finite[0]).all()
    assert not np.isfinite(finite[1])[:, 3].any()
    assert np.isfinite(np.delete(finite[1], 3, axis=1)).all()
    [broken] = by_sample(extractor, [np.array([6, 5], np.int32)])
    assert not np.isfinite(broken[0][-1]).any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_sample_that_is_not_finite_leaves_those_in_its_row_alone(
    tmp_path: Path, pooling: Pooling
) -> None:
    tensors = varied_weights(SMALL)
    tensors["model.embed_tokens.weight"][5] = np.inf
    extractor = load(
        write_checkpoint(tmp_path, tensors=tensors), [0, 1], pooling=pooling, batch_size=8
    )
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
    folder = write_checkpoint(tmp_path, tensors=tensors)
    extractor = load(folder, [0], hook_points=["resid_pre"], storage_dtype=storage_dtype)
    [captured] = extractor.extract(prompts((40, 30, 50)))
    [statistics] = captured.statistics.values()
    assert statistics.mean_norm > 1e30
    assert_close_statistics(statistics, captured.vectors["blocks.0.hook_resid_pre"])


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


@pytest.mark.parametrize(
    "ids",
    [[], [0, 1, 64], [-1], [2**32 + 1], [1.9, 2.0], [1.0, np.nan], [True], [[1, 2]], ["1"]],
    ids=str,
)
def test_a_sample_that_cannot_be_embedded_is_named(checkpoint: Path, ids: list[Any]) -> None:
    token_ids = [np.array([1], np.int32), np.array(ids)]
    seen = f"token id {ids[-1]}" if ids in ([0, 1, 64], [-1], [2**32 + 1]) else "got "
    with pytest.raises(ValueError, match=rf"sample 1: (?=.*{seen}).* in 0\.\.63"):
        list(load(checkpoint, [0]).extract(token_ids))


def test_a_sample_longer_than_the_positions_of_the_model_is_named(checkpoint: Path) -> None:
    extractor = load(checkpoint, [0])
    positions = extractor.source.config.max_position_embeddings
    with pytest.raises(ValueError, match=r"sample 1: .*max_position_embeddings"):
        list(extractor.extract([np.zeros(length, np.int32) for length in (1, positions + 1)]))


@pytest.mark.parametrize("kind", [np.int8, np.uint64, list], ids=lambda kind: kind.__name__)
def test_token_ids_of_any_integer_type_are_the_same_sample(checkpoint: Path, kind: Any) -> None:
    extractor = load(checkpoint, [0])
    (expected,) = extractor.extract([np.array([3, 1, 2], np.int32)])
    ids: Any = [3, 1, 2] if kind is list else np.array([3, 1, 2], kind)
    (found,) = extractor.extract([ids])
    np.testing.assert_array_equal(found.vectors[0], expected.vectors[0])


# Arguments


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([], {}, "no layer to capture"),
        ("10-23", {}, "layers must be a sequence of integers or 'all', got '10-23'"),
        (3, {}, "layers must be a sequence of integers or 'all', got 3"),
        ([-1, 3, 99], {}, "layers -1, 99 do not exist: this model has 24 layers, 0 to 23"),
        ([1, 2, 1], {}, "a layer is named twice: 1, 1, 2"),
        ([0], {"pooling": "max"}, "pooling must be one of last, mean, none, got 'max'"),
        ([0], {"compute_dtype": "float16"}, "compute_dtype must be .*bfloat16, got 'float16'"),
        ([0], {"storage_dtype": "int4"}, "storage_dtype must be .*bfloat16.*, got 'int4'"),
        ([0], {"batch_size": 0}, "batch_size must be positive, got 0"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(
    layers: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ActivationExtractor.load("random:tiny", layers, **options)


@pytest.mark.parametrize(
    ("expected", "named"),
    [
        ({"weights_fingerprint": "model: AAAAAA=="}, "weights .* started with model: AAAAAA=="),
        ({"expected_config": replace(SMALL, rope_theta=5e5)}, "rope_theta 1000000.0 .* 500000.0"),
        ({"expected_versions": (("jax", "0.1"),)}, r"this worker has jax .* started with 0\.1"),
        ({"expected_ops": ("cudnn", "splash")}, r"(xla|amx) on cpu operations.* cudnn, splash"),
    ],
)
def test_a_worker_that_differs_from_the_rest_of_the_run_refuses_to_start(
    checkpoint: Path, expected: dict[str, Any], named: str
) -> None:
    settings = ExtractorSettings(str(checkpoint), (1,))
    with pytest.raises(OtherWorkerError, match=named):
        open_extractor(replace(settings, **expected))
    found = open_extractor(settings)
    fits: dict[str, Any] = {
        "weights_fingerprint": found.source.weights_fingerprint(),
        "expected_config": SMALL,
        "expected_versions": (("numpy", np.__version__),),
        "expected_ops": (found.ops,),
    }
    assert open_extractor(replace(settings, **fits)).ops == found.ops
