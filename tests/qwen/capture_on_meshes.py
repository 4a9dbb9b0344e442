"""Captures the same prompts on several meshes of 8 virtual CPU devices; run by ``test_mesh.py``.

The number of devices is fixed when JAX starts, so this is a process of its own. It writes to the
file named by its argument, as ``.npz``: for each capture one array [sites, vectors, hidden], the
prompts in order, and the messages of the errors that it provoked.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from activation_dataset.format import POOLINGS, Pooling, StorageDtype
from activation_dataset.sites import HookPoint
from qwen.extractor import ActivationExtractor
from qwen.mesh import MeshError
from qwen.settings import ExtractorSettings
from qwen.source import ModelSource, open_model
from tests.qwen.checkpoints import GROUPED_BY_FOUR, write_checkpoint
from tests.qwen.statistics import assert_close_statistics

DEVICES = 8
MESHES = ((8, 1), (4, 2), (2, 4))
IMPOSSIBLE_MESHES = ((1, 8), (16, 1), (3, 3), (0, 1))
LENGTHS = (*range(3, 480, 17), 512, 1, 1)
"""Enough for two steps on the (8, 1) mesh, the second with rows that stay empty."""

ALL_LAYERS = tuple(range(GROUPED_BY_FOUR.num_hidden_layers))

HOOK_POINTS: tuple[HookPoint, ...] = ("attn_out", "mlp_out", "resid_post")
"""What a model axis splits, each device having a part of the sum, and the stream it is added to."""

Capture = tuple[tuple[int, int] | None, Pooling, StorageDtype]
"""Mesh (None for the default), pooling, compute dtype."""

REFERENCE: Capture = ((1, 1), "none", "float32")

CAPTURES: tuple[Capture, ...] = (
    *((mesh, pooling, "float32") for mesh in MESHES for pooling in POOLINGS),
    (None, "last", "bfloat16"),
    ((2, 4), "none", "bfloat16"),
)


def capture_name(mesh: tuple[int, int] | None, pooling: str, dtype: str) -> str:
    return f"{mesh} {pooling} {dtype}"


def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    size = GROUPED_BY_FOUR.vocab_size
    return [rng.integers(0, size, length, dtype=np.int32) for length in LENGTHS]


def capture(
    source: ModelSource, mesh: tuple[int, int] | None, pooling: Pooling, dtype: StorageDtype
) -> np.ndarray:
    settings = ExtractorSettings(
        source.name,
        ALL_LAYERS,
        hook_points=HOOK_POINTS,
        pooling=pooling,
        compute_dtype=dtype,
        batch_size=1,
        mesh_shape=mesh,
    )
    extractor = ActivationExtractor(source, settings)
    found: dict[int, np.ndarray] = {}
    for captured in extractor.extract(prompts()):
        stacked = np.stack([captured.vectors[site] for site in extractor.sites])
        for site in extractor.sites:
            assert_close_statistics(captured.statistics[site], captured.vectors[site])
        ends = np.cumsum(captured.vector_counts)[:-1]
        found |= zip(captured.samples, np.split(stacked, ends, axis=1), strict=True)
    return np.concatenate([found[sample] for sample in range(len(LENGTHS))], axis=1)


def error_message(source: ModelSource, mesh: tuple[int, int]) -> str:
    try:
        ActivationExtractor(source, ExtractorSettings(source.name, ALL_LAYERS, mesh_shape=mesh))
    except MeshError as error:
        return str(error)
    return "no error"


def main(result_file: str) -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES)
    with tempfile.TemporaryDirectory() as folder:
        source = open_model(str(write_checkpoint(Path(folder), GROUPED_BY_FOUR)))
        arrays = {capture_name(*c): capture(source, *c) for c in (REFERENCE, *CAPTURES)}
        errors = {str(mesh): np.array(error_message(source, mesh)) for mesh in IMPOSSIBLE_MESHES}
    np.savez(result_file, allow_pickle=False, **arrays, **errors)


if __name__ == "__main__":
    main(sys.argv[1])
