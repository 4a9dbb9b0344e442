"""Our activations next to those of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from activation_dataset.format import Pooling, StorageDtype
from activation_dataset.sites import HOOK_POINTS, HookPoint
from qwen.extractor import ActivationExtractor
from qwen.source import open_model

RecordProperty = Callable[[str, object], None]

RELATIVE_ERROR_FLOAT32 = 1e-4
"""Largest |ours - theirs| / |theirs| of a vector, L2."""

COSINE_BFLOAT16: dict[HookPoint, float] = {
    "resid_pre": 0.999,
    "attn_out": 0.998,
    "resid_mid": 0.999,
    "mlp_out": 0.998,
    "resid_post": 0.999,
}
"""Of what is added to the residual stream, more is rounding than of the stream itself."""

BATCH_SIZE = 1
"""One row of 512 slots, so that the prompts need several steps."""


def extracted(
    model_path: Path,
    token_ids: list[np.ndarray],
    pooling: Pooling,
    compute_dtype: StorageDtype,
    hook_points: Sequence[HookPoint] = HOOK_POINTS,
) -> list[np.ndarray]:
    """For each prompt [sites, vectors, hidden] float32: every layer at each hook point."""
    layers = range(open_model(str(model_path)).config.num_hidden_layers)
    extractor = ActivationExtractor.load(
        str(model_path),
        layers,
        hook_points=hook_points,
        pooling=pooling,
        compute_dtype=compute_dtype,
        batch_size=BATCH_SIZE,
    )
    found: dict[int, np.ndarray] = {}
    for captured in extractor.extract(token_ids):
        ends = np.cumsum(captured.vector_counts)[:-1]
        by_site = [np.split(captured.vectors[site], ends) for site in extractor.sites]
        for sample, *vectors in zip(captured.samples, *by_site, strict=True):
            found[sample] = np.stack(vectors)
    return [found[sample] for sample in range(len(token_ids))]


def pooled(activations: np.ndarray, pooling: Pooling) -> np.ndarray:
    """[sites, tokens, hidden] to [sites, vectors, hidden]"""
    if pooling == "last":
        return activations[:, -1:]
    if pooling == "mean":
        return activations.mean(axis=1, keepdims=True, dtype=np.float64)
    return activations


def compare(
    ours: list[np.ndarray],
    theirs: list[np.ndarray],
    dtype: StorageDtype,
    record_property: RecordProperty,
    hook_points: Sequence[HookPoint] = HOOK_POINTS,
) -> None:
    """Checks every vector, and leaves the worst figures in the report (``--junitxml``)."""
    assert [o.shape for o in ours] == [t.shape for t in theirs]
    a, b = (np.concatenate(x, axis=1).astype(np.float64) for x in (ours, theirs))
    norms_a, norms_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    errors = (np.linalg.norm(a - b, axis=-1) / norms_b).max(axis=1)
    cosines = ((a * b).sum(-1) / (norms_a * norms_b)).min(axis=1)
    for hook_point, worst, least in zip(
        hook_points,
        np.split(errors, len(hook_points)),
        np.split(cosines, len(hook_points)),
        strict=True,
    ):
        record_property(f"worst_relative_error_{hook_point}", float(worst.max()))
        record_property(f"worst_cosine_{hook_point}", float(least.min()))
        if dtype == "float32":
            assert (worst <= RELATIVE_ERROR_FLOAT32).all(), f"{hook_point} by layer: {worst}"
        else:
            assert (least >= COSINE_BFLOAT16[hook_point]).all(), f"{hook_point} by layer: {least}"
