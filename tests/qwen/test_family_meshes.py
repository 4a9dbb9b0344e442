"""Comparison of each family on several devices with one device, and of packed with single samples.

The number of devices is fixed when JAX starts, so this file also runs as a program that captures.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from activation_dataset.sites import HookPoint
from qwen.families import read_config
from tests.qwen.checkpoints import varied_weights, write_files
from tests.qwen.comparison import RecordProperty, differences, extracted
from tests.qwen.virtual_devices import captured_by

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 20,
    "rms_norm_eps": 1e-3,
    "rope_theta": 1e4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
DELTA = {
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4},
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "norm_topk_prob": True,
        **EXPERTS,
    },
    "qwen3_5": {"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", **DELTA},
    "qwen3_5_moe": {
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "model_type": "qwen3_5_moe_text",
        "shared_expert_intermediate_size": 24,
        **EXPERTS,
        **DELTA,
    },
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
}
MESHES = ((8, 1), (1, 8), (4, 2), (2, 4))

LENGTHS = (1, 200, 2, 63, 64, 65, 129, 17)
"""Lengths of samples that share a row and a chunk of the delta network, or cross chunks."""

HOOK_POINTS: tuple[HookPoint, ...] = ("mlp_out", "resid_post")

EXACT, OTHERS = 1e-5, 1e-4
"""Maximum relative error of a vector, with only attention and with delta layers or experts."""


def capture_all(folder: Path) -> None:
    """Write the vectors of each model in each configuration to `captures.npz`."""
    jax.config.update("jax_num_cpu_devices", 8)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 320, length, dtype=np.int32) for length in LENGTHS]
    arrays = {}
    for name, fields in MODELS.items():
        fields = SHAPE | fields
        model = write_files(folder / name, fields, varied_weights(read_config(fields)))

        def found(
            mesh: tuple[int, int], samples: list[np.ndarray], model: Path = model
        ) -> np.ndarray:
            each = extracted(model, samples, "none", "float32", HOOK_POINTS, mesh)
            return np.concatenate(each, axis=1)

        arrays[f"{name} packed"] = found((1, 1), prompts)
        alone = [found((1, 1), [prompt]) for prompt in (prompts[1], prompts[5])]
        arrays[f"{name} alone"] = np.concatenate(alone, axis=1)
        for mesh in MESHES:
            arrays[f"{name} {mesh}"] = found(mesh, prompts)
    np.savez(folder / "captures.npz", allow_pickle=False, **arrays)


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, np.ndarray]:
    """Results of `capture_all` in a process with 8 virtual devices."""
    return captured_by(
        "tests.qwen.test_family_meshes", tmp_path_factory.mktemp("families"), timeout=900
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_mesh_gives_what_one_device_gives(
    captures: Mapping[str, np.ndarray], name: str, record_property: RecordProperty
) -> None:
    for mesh in MESHES:
        errors, _ = differences(captures[f"{name} {mesh}"], captures[f"{name} packed"])
        record_property(f"worst_relative_error_{mesh}", float(errors.max()))
        assert errors.max() <= (EXACT if name in ("qwen3", "llama") else OTHERS), mesh


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_alone_is_that_among_others(
    captures: Mapping[str, np.ndarray], name: str, record_property: RecordProperty
) -> None:
    every = np.split(captures[f"{name} packed"], np.cumsum(LENGTHS)[:-1], axis=1)
    among = np.concatenate([every[1], every[5]], axis=1)
    errors, _ = differences(captures[f"{name} alone"], among)
    record_property("worst_relative_error", float(errors.max()))
    assert errors.max() <= EXACT


if __name__ == "__main__":
    capture_all(Path(sys.argv[1]))
