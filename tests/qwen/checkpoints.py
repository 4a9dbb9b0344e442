"""Small checkpoints on disk, made with numpy and written by the safetensors library."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from qwen.checkpoint import SINGLE_FILE
from qwen.config import ModelConfig
from qwen.families import family_of
from qwen.source import PRESET_FILES

SMALL = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-3,
    tie_word_embeddings=False,
)

INTERNAL = {
    *("rotary_dim", "attention_bias", "qk_norm", "output_gate", "zero_centered_norms"),
    *("dense_layers", "delta", "experts", "rope_scaling"),
}
"""Fields of `ModelConfig` that `config.json` lacks or stores in another form."""

GROUPED_BY_FOUR = replace(SMALL, num_attention_heads=8, num_key_value_heads=4)
"""A model whose key-value heads can be split over 4 devices but not over 8."""


def varied_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return every tensor of the config's checkpoint, float32, with varied biases and norms.

    Values depend only on the name. They are the same on every machine and in every version of
    numpy, whose legacy generator is frozen
    (https://numpy.org/doc/stable/reference/random/legacy.html).
    """
    tensors = {}
    for name, shape in family_of(config).tensor_shapes(config).items():
        generator = np.random.RandomState([seed, zlib.crc32(name.encode())])
        noise = generator.standard_normal(shape)
        if name.endswith("norm.weight"):
            values = 1 + 0.3 * noise
        elif name.endswith("bias"):
            values = 0.5 * noise
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            values = noise
        else:
            values = noise / np.sqrt(shape[-1])
        tensors[name] = values.astype(np.float32)
    return tensors


def config_fields(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    """Return the `config.json` of a published checkpoint; `changes` add or replace fields."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        **{name: value for name, value in config.to_json().items() if name not in INTERNAL},
        **changes,
    }


def write_checkpoint(
    folder: Path,
    config: ModelConfig = SMALL,
    tensors: Mapping[str, np.ndarray] | None = None,
    **changes: Any,
) -> Path:
    """Write `config.json` and one safetensors file; `changes` are as in `config_fields`."""
    tensors = varied_weights(config) if tensors is None else tensors
    return write_files(folder, config_fields(config, **changes), tensors)


def write_files(folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    """Write `config.json` and one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(dict(tensors), folder / SINGLE_FILE, metadata={"format": "pt"})
    return folder


def offline_hub_cache(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *commits: str
) -> Path:
    """Make an offline cache of the hub with `org/NAME`, where NAME is the name of the folder.

    Each test needs its own name, because a process resolves a commit once. All commits have the
    files of the checkpoint, and the main branch is the first one. Returns the repository's folder.
    """
    cache = folder / f"models--org--{folder.name}"
    for commit in commits:
        shutil.copytree(checkpoint, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commits[0])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def add_tokenizer(folder: Path) -> Path:
    """Copy the shipped tokenizer into a checkpoint."""
    for file in PRESET_FILES.folder.iterdir():
        shutil.copy(file, folder)
    return folder
