"""Comparison of activations on several devices with one device.

The number of devices is fixed when JAX starts, so this file also runs as a program that captures.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from activation_dataset.format import POOLINGS, Pooling
from activation_dataset.sites import HookPoint
from activation_dataset.storage_dtype import ComputeDtype
from qwen.config import DeltaConfig, ExpertsConfig
from qwen.extractor import ActivationExtractor
from qwen.mesh import MeshError, check_mesh_fits_model
from tests.qwen.checkpoints import GROUPED_BY_FOUR, write_checkpoint
from tests.qwen.comparison import RecordProperty, compare, extracted, pooled
from tests.qwen.virtual_devices import captured_by

LENGTHS = (*range(3, 480, 17), 512, 1, 1)
"""Lengths for two steps on the (8, 1) mesh, the second with empty rows."""

HOOK_POINTS: tuple[HookPoint, ...] = ("k", "v", "attn_out", "mlp_out", "resid_post")
"""Hook points that a model axis splits, by heads or as parts of a sum, and the residual stream."""

Capture = tuple[tuple[int, int] | None, Pooling, ComputeDtype]
"""Mesh (None for the default), pooling and compute dtype."""

REFERENCE: Capture = ((1, 1), "none", "float32")

CAPTURES: tuple[Capture, ...] = (
    *((mesh, pooling, "float32") for mesh in ((8, 1), (4, 2), (2, 4)) for pooling in POOLINGS),
    ((1, 8), "none", "float32"),
    (None, "last", "bfloat16"),
    ((2, 4), "none", "bfloat16"),
)


def capture_all(folder: Path) -> None:
    """Write one array [sites, vectors, hidden] for each capture to `captures.npz`."""
    jax.config.update("jax_num_cpu_devices", 8)
    rng = np.random.default_rng(3)
    size = GROUPED_BY_FOUR.vocab_size
    prompts = [rng.integers(0, size, length, dtype=np.int32) for length in LENGTHS]
    arrays = {}
    write_checkpoint(folder, GROUPED_BY_FOUR)
    for mesh, pooling, dtype in (REFERENCE, *CAPTURES):
        found = extracted(folder, prompts, pooling, dtype, HOOK_POINTS, mesh)
        arrays[str((mesh, pooling, dtype))] = np.concatenate(found, axis=1)
    np.savez(folder / "captures.npz", allow_pickle=False, **arrays)


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, np.ndarray]:
    """Results of `capture_all` in a process with 8 virtual devices."""
    return captured_by("tests.qwen.test_mesh", tmp_path_factory.mktemp("meshes"), timeout=400)


@pytest.mark.parametrize("capture", CAPTURES, ids=str)
def test_a_mesh_gives_what_one_device_gives(
    captures: Mapping[str, np.ndarray], capture: Capture, record_property: RecordProperty
) -> None:
    _, pooling, dtype = capture
    ours, every_token = captures[str(capture)], captures[str(REFERENCE)]
    prompts = np.split(every_token, np.cumsum(LENGTHS)[:-1], axis=1)
    expected = np.concatenate([pooled(prompt, pooling) for prompt in prompts], axis=1)
    compare([ours], [expected], dtype, record_property, HOOK_POINTS, 1e-5)


def test_a_mesh_that_does_not_fit_the_devices_is_explained() -> None:
    devices = len(jax.local_devices())
    for data in (2 * devices, 0):
        needed = rf"{data},1 needs {data} devices, .* has {devices} \(cpu\).* at most {devices}"
        with pytest.raises(MeshError, match=needed):
            ActivationExtractor.load("random:tiny", [0], mesh_shape=(data, 1))


@pytest.mark.parametrize(
    ("changes", "parts", "message"),
    [
        ({}, 16, "axis of 16 must divide num_attention_heads=8; possible .*: 1, 2, 4, 8$"),
        (
            {"intermediate_size": 20},
            8,
            "must divide intermediate_size=20; possible .*: 1, 2, 4$",
        ),
        (
            {"num_attention_heads": 12, "num_key_value_heads": 6},
            4,
            "must divide num_key_value_heads=6 or be a multiple of it; possible .*: 1, 2, 3, 6,",
        ),
        (
            {"experts": ExpertsConfig(6, 2, 8)},
            4,
            "must divide num_experts=6; possible .*: 1, 2$",
        ),
        (
            {"delta": DeltaConfig(2, 4, 8, 8, 4), "layer_types": ("linear_attention",) * 3},
            4,
            "must divide linear_num_key_heads=2; possible .*: 1, 2$",
        ),
    ],
    ids=str,
)
def test_a_mesh_that_does_not_fit_the_model_is_explained(
    changes: dict[str, Any], parts: int, message: str
) -> None:
    mesh: Any = AbstractMesh((1, parts), ("data", "model"))
    with pytest.raises(MeshError, match=message):
        check_mesh_fits_model(mesh, replace(GROUPED_BY_FOUR, **changes))


if __name__ == "__main__":
    capture_all(Path(sys.argv[1]))
