"""Comparison of our activations with Hugging Face transformers or another set of devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from activation_dataset.format import Pooling
from activation_dataset.sites import HOOK_POINTS, HookPoint, Site, place_of
from activation_dataset.statistics import LayerStatistics
from activation_dataset.storage_dtype import ComputeDtype
from qwen.batching import SampleTokens
from qwen.extractor import ActivationExtractor
from qwen.settings import ExtractorSettings
from qwen.source import open_model

RecordProperty = Callable[[str, object], None]

RELATIVE_ERROR_FLOAT32 = 1e-5
"""Maximum relative L2 error of a vector, |ours - theirs| / |theirs|."""

STREAM: tuple[HookPoint, ...] = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""The residual stream and its updates: hook points of the same width in every layer."""

COSINE_BFLOAT16 = dict.fromkeys(HOOK_POINTS, 0.999) | {"attn_out": 0.998, "mlp_out": 0.998}
"""Minimum cosine by hook point. Rounding affects updates more than the residual stream."""


def extracted(
    model_path: Path,
    token_ids: list[np.ndarray],
    pooling: Pooling,
    compute_dtype: ComputeDtype,
    hook_points: Sequence[HookPoint] = STREAM,
    mesh_shape: tuple[int, int] | None = None,
) -> list[np.ndarray]:
    """Return [sites, vectors, hidden] float32 for each prompt: every layer at each hook point."""
    layers = range(open_model(str(model_path)).config.num_hidden_layers)
    extractor = ActivationExtractor.load(
        str(model_path),
        layers,
        hook_points=hook_points,
        pooling=pooling,
        compute_dtype=compute_dtype,
        batch_size=1,  # One row of 512 slots, so the prompts need several steps.
        mesh_shape=mesh_shape,
    )
    samples = by_sample(extractor, token_ids)
    return [np.stack([sample[site] for site in extractor.sites]) for sample in samples]


def by_sample(
    extractor: ActivationExtractor, token_ids: Sequence[np.ndarray | SampleTokens]
) -> list[dict[Site, np.ndarray]]:
    """Return [vectors, hidden] by site for each sample, and check that each occurs exactly once.

    This also checks the statistics of every step.
    """
    found: dict[int, dict[Site, np.ndarray]] = {}
    for captured in extractor.extract(token_ids):
        assert len(captured.samples) == len(captured.vector_counts)
        assert not found.keys() & set(captured.samples)
        ends = np.cumsum(captured.vector_counts)
        for site, vectors in captured.vectors.items():
            assert vectors.shape == (ends[-1], extractor.source.config.width(*place_of(site)))
            assert_close_statistics(captured.statistics[site], vectors)
            for sample, part in zip(captured.samples, np.split(vectors, ends[:-1]), strict=True):
                found.setdefault(sample, {})[site] = part
    return [found[sample] for sample in range(len(token_ids))]


def captured_sites(
    model_path: Path, token_ids: Sequence[np.ndarray], pooling: Pooling, compute_dtype: ComputeDtype
) -> list[dict[Site, np.ndarray]]:
    """Return [vectors, width] for each prompt by site, for all sites of the model."""
    source = open_model(str(model_path))
    config, layers = source.config, range(source.config.num_hidden_layers)
    layers_with: dict[tuple[int, ...], list[HookPoint]] = {}
    for point in HOOK_POINTS:
        having = tuple(layer for layer in layers if config.width(layer, point))
        layers_with.setdefault(having, []).append(point)
    found: list[dict[Site, np.ndarray]] = [{} for _ in token_ids]
    for having, points in layers_with.items():
        if having:
            settings = ExtractorSettings(
                str(model_path), having, tuple(points), pooling, compute_dtype, batch_size=1
            )
            extractor = ActivationExtractor(source, settings)
            for sample, sites in zip(found, by_sample(extractor, token_ids), strict=True):
                sample |= sites
    return found


def worst_by_hook_point(
    ours: Sequence[Mapping[Site, np.ndarray]], theirs: Sequence[Mapping[Site, np.ndarray]]
) -> dict[HookPoint, tuple[float, float]]:
    """Return the largest relative error and the smallest cosine of a vector, by hook point."""
    worst: dict[HookPoint, tuple[float, float]] = {}
    for mine, reference in zip(ours, theirs, strict=True):
        for site, expected in reference.items():
            point = place_of(site)[1]
            error, cosine = differences(mine[site], expected)
            before = worst.get(point, (0.0, 1.0))
            worst[point] = (max(before[0], error.max()), min(before[1], cosine.min()))
    return worst


def differences(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the relative L2 error and the cosine of each vector of [..., width]."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    assert a.shape == b.shape
    norms_a, norms_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    return np.linalg.norm(a - b, axis=-1) / norms_b, (a * b).sum(-1) / (norms_a * norms_b)


def pooled(activations: np.ndarray, pooling: Pooling) -> np.ndarray:
    """Pool [..., tokens, hidden] to [..., vectors, hidden]."""
    if pooling == "last":
        return activations[..., -1:, :]
    if pooling == "mean":
        return activations.mean(axis=-2, keepdims=True, dtype=np.float64)
    return activations


def compare(
    ours: list[np.ndarray],
    theirs: list[np.ndarray],
    dtype: ComputeDtype,
    record_property: RecordProperty,
    hook_points: Sequence[HookPoint] = STREAM,
    relative_error: float = RELATIVE_ERROR_FLOAT32,
    cosine: Mapping[HookPoint, float] = COSINE_BFLOAT16,
) -> None:
    """Check every vector, and record the worst figures in the report (`--junitxml`)."""
    assert [o.shape for o in ours] == [t.shape for t in theirs]
    a, b = (np.concatenate(x, axis=1) for x in (ours, theirs))
    errors, cosines = differences(a, b)
    errors, cosines = errors.max(axis=1), cosines.min(axis=1)
    parts = len(hook_points)
    for hook_point, worst, least in zip(
        hook_points, np.split(errors, parts), np.split(cosines, parts), strict=True
    ):
        record_property(f"worst_relative_error_{hook_point}", float(worst.max()))
        record_property(f"worst_cosine_{hook_point}", float(least.min()))
        if dtype == "float32":
            assert (worst <= relative_error).all(), f"{hook_point} by layer: {worst}"
        else:
            assert (least >= cosine[hook_point]).all(), f"{hook_point} by layer: {least}"


def assert_close_statistics(found: LayerStatistics, vectors: np.ndarray) -> None:
    """Check counts exactly, and all other statistics to about float32's precision.

    Args:
        found: statistics to check.
        vectors: [n, hidden] float32 or bfloat16.
    """
    bits = vectors if vectors.dtype == np.float32 else vectors.view(np.uint16)
    expected = LayerStatistics.of_vectors(bits)
    assert (found.count, found.nonfinite_count) == (expected.count, expected.nonfinite_count)
    assert found.norm_histogram.total == found.count
    rms = np.sqrt(expected.variance + expected.mean**2)
    assert (np.abs(found.mean - expected.mean) <= 1e-6 * rms).all()
    # The mean of a device's vectors is rounded before the devices are merged.
    tolerance = 1e-6 * np.sqrt(expected.variance) * rms
    assert (np.abs(found.variance - expected.variance) <= tolerance).all()
    for name in ("mean_norm", "mean_squared_norm", "max_norm"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert abs(ours - theirs) <= 1e-6 * theirs, name
