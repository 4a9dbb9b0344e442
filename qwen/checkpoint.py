"""Weights of a checkpoint in the Hugging Face layout: safetensors files, or a seed."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qwen.config import ModelConfig
from qwen.families import family_of

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not of the model that its config describes."""


class CheckpointFolder:
    """The safetensors files of a local folder: one file, or several with an index.

    The files are memory-mapped; memory holds only the tensors that are read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Read and check the headers.

        Raises:
          CheckpointError: naming the file, what is wrong with it and what to do.
        """
        self._files: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        paths: dict[str, Path] = {}
        for path in checkpoint_files(Path(folder)):
            file, shapes = _open_safetensors(path)
            if twice := paths.keys() & shapes.keys():
                name = min(twice)
                raise CheckpointError(
                    f"{path}: tensor {name!r} is also in {paths[name]}. Remove one of them."
                )
            paths |= dict.fromkeys(shapes, path)
            self._files |= dict.fromkeys(shapes, file)
            self._shapes |= shapes

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        tensor: np.ndarray = self._files[name].get_tensor(name)
        return tensor


def _open_safetensors(path: Path) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Return the memory-mapped `safetensors.safe_open`, and the shape of every tensor by name.

    It checks that the header is sound and that the tensors fill the file exactly.
    """
    from safetensors import SafetensorError, safe_open

    try:
        path.open("rb").close()
        file = safe_open(path, framework="numpy")
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); this user must be able to read it"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: truncated, damaged or not a safetensors file ({str(error)[:200]}). "
            "Download or copy the file again."
        ) from error
    for name, tensor in tensors.items():
        if (dtype := tensor.get_dtype()) not in ("F32", "BF16"):
            raise CheckpointError(
                f"{path}: tensor {name!r} has dtype {dtype}; supported are float32 (F32) and "
                "bfloat16 (BF16). Convert the checkpoint to one of them."
            )
    return file, {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: one, or else those that its index names.

    Raises:
      CheckpointError: if there are none, or the index names one that is absent.
    """
    index = folder / INDEX_FILE
    if (folder / SINGLE_FILE).exists():
        files = [folder / SINGLE_FILE]
    elif index.exists():
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{index}: expected a JSON object with a 'weight_map' of tensor to file ({error})"
            ) from error
        for name in names:
            if not isinstance(name, str) or name in ("", ".", "..") or "/" in name:
                raise CheckpointError(f"{index}: {name!r} is not the name of a file next to it")
        files = sorted(folder / name for name in names)
    else:
        files = []
    if not files:
        raise CheckpointError(
            f"{folder}: no weights: expected {SINGLE_FILE} or {INDEX_FILE}. Point --model_path at "
            "a checkpoint in the Hugging Face layout with safetensors weights "
            "(PyTorch .bin files are not read, since they are pickles)."
        )
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{file}: named by {index.name} but absent. Download it again.")
    return files


class RandomWeights:
    """Seeded random weights of a config's shape, drawn tensor by tensor.

    Kernels and embeddings are normal with standard deviation 0.02, as transformers initializes
    Qwen2. So are biases, so that a mistake with one shows. Norms are 1.
    """

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._shapes = family_of(config).tensor_shapes(config)
        self.seed = seed

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            return np.ones(shape, np.float32)
        generator = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        values = generator.standard_normal(shape, np.float32)
        values *= 0.02
        return values.astype(ml_dtypes.bfloat16)


Weights = CheckpointFolder | RandomWeights
"""Tensors by name, float32 or bfloat16, as the checkpoint spells and lays them out."""


def check_weights(weights: Weights, config: ModelConfig, source: str) -> None:
    """Check that the weights are exactly those of the config.

    A model with a tied head may also store the head.

    Raises:
      CheckpointError: naming each tensor that is missing, extra or wrongly shaped.
    """
    found, expected = dict(weights.shapes()), family_of(config).tensor_shapes(config)
    if config.tie_word_embeddings:
        found.pop("lm_head.weight", None)

    def listed(names: Iterable[str]) -> str:
        ordered = sorted(names)
        rest = f" and {len(ordered) - 8} more" if len(ordered) > 8 else ""
        return ", ".join(ordered[:8]) + rest

    problems = []
    if missing := expected.keys() - found.keys():
        problems.append(f"missing: {listed(missing)}")
    if extra := found.keys() - expected.keys():
        problems.append(f"not part of the model: {listed(extra)}")
    if wrong := [
        f"{name} has shape {list(found[name])}, the config needs {list(expected[name])}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]:
        problems.append(f"wrong shape: {listed(wrong)}")
    if problems:
        raise CheckpointError(
            f"{source}: the tensors are not those of its config.json; " + "; ".join(problems)
        )
