"""Several devices give the activations that one device gives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

from qwen.extractor import ActivationExtractor
from qwen.mesh import MeshError
from tests.qwen.capture_on_meshes import (
    CAPTURES,
    LENGTHS,
    REFERENCE,
    Capture,
    capture_name,
)

ROOT = Path(__file__).resolve().parents[2]

RELATIVE_ERROR_FLOAT32 = 1e-5
COSINE_BFLOAT16 = 0.999


@pytest.fixture(scope="module")
def captures(
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[str, np.ndarray]:
    """What ``capture_on_meshes`` found, in a process with 8 virtual devices."""
    result_file = tmp_path_factory.mktemp("meshes") / "captures.npz"
    subprocess.run(
        [sys.executable, "-m", "tests.qwen.capture_on_meshes", str(result_file)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=400,
    )
    with np.load(result_file) as arrays:
        return dict(arrays)


def pooled_on_one_device(captures: Mapping[str, np.ndarray], pooling: str) -> np.ndarray:
    """[sites, vectors, hidden], pooled here from one device's capture of every token."""
    every_token = captures[capture_name(*REFERENCE)].astype(np.float64)
    prompts = np.split(every_token, np.cumsum(LENGTHS)[:-1], axis=1)
    if pooling == "last":
        return np.stack([prompt[:, -1] for prompt in prompts], axis=1)
    if pooling == "mean":
        return np.stack([prompt.mean(axis=1) for prompt in prompts], axis=1)
    return every_token


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda capture: capture_name(*capture))
def test_a_mesh_gives_what_one_device_gives(
    captures: Mapping[str, np.ndarray],
    capture: Capture,
    record_property: Callable[[str, object], None],
) -> None:
    _, pooling, dtype = capture
    ours = captures[capture_name(*capture)].astype(np.float64)
    expected = pooled_on_one_device(captures, pooling)
    assert ours.shape == expected.shape
    norms = np.linalg.norm(expected, axis=-1)
    errors = np.linalg.norm(ours - expected, axis=-1) / norms
    cosines = (ours * expected).sum(-1) / (norms * np.linalg.norm(ours, axis=-1))
    record_property("worst_relative_error", float(errors.max()))
    record_property("worst_cosine", float(cosines.min()))
    if dtype == "float32":
        assert errors.max() <= RELATIVE_ERROR_FLOAT32
    else:
        assert cosines.min() >= COSINE_BFLOAT16


@pytest.mark.parametrize(
    ("mesh", "parts"),
    [
        ("(1, 8)", ["model axis of 8", "num_key_value_heads=4", "possible: 1, 2, 4"]),
        ("(16, 1)", ["16,1 needs 16 devices", "has 8 (cpu)", "at most 8"]),
        ("(3, 3)", ["3,3 needs 9 devices", "has 8 (cpu)"]),
        ("(0, 1)", ["0,1"]),
    ],
)
def test_a_mesh_that_does_not_fit_is_explained(
    captures: Mapping[str, np.ndarray], mesh: str, parts: list[str]
) -> None:
    message = str(captures[mesh])
    assert all(part in message for part in parts), message


def test_more_devices_than_this_machine_has() -> None:
    devices = len(jax.local_devices())
    with pytest.raises(MeshError, match=rf"needs {2 * devices} devices, .* has {devices}"):
        ActivationExtractor.load("random:tiny", [0], mesh_shape=(2 * devices, 1))
