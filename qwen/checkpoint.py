"""Weights of a Hugging Face checkpoint, from the memory map to (sharded) device arrays.

The safetensors format: 8 bytes little-endian header length, a JSON header of
``{name: {dtype, shape, data_offsets}}``, then the tensors' bytes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import ml_dtypes
import numpy as np

from qwen.config import ModelConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEADER_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, little-endian."""

MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library sets on a header."""

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not of the model that its config describes."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in a safetensors file: bytes ``start`` to ``end`` of the file."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> np.ndarray:
        """The tensor as a view of the memory map; nothing is copied until it is used."""
        flat = np.memmap(self.file, mode="r", dtype=np.uint8, offset=self.start, shape=self._bytes)
        return flat.view(self.dtype).reshape(self.shape)

    @property
    def _bytes(self) -> tuple[int]:
        return (self.end - self.start,)


class Weights(Protocol):
    """Named tensors, as the checkpoint spells and lays them out."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> np.ndarray: ...


def read_safetensors_header(path: Path) -> dict[str, TensorEntry]:
    """Reads and checks the header of a safetensors file.

    Raises:
      CheckpointError: for anything but a well-formed file whose tensors fill it exactly; it names
        the file, the tensor and what to do.
    """

    def bad(problem: str) -> CheckpointError:
        return CheckpointError(f"{path}: {problem}. Download or copy the file again.")

    try:
        size = path.stat().st_size
        stream = path.open("rb")
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); this user must be able to read it"
        ) from error
    with stream:
        prefix = stream.read(HEADER_LENGTH_BYTES)
        if len(prefix) < HEADER_LENGTH_BYTES:
            raise bad(f"a safetensors file starts with 8 bytes of header length, it has {size}")
        header_bytes = int.from_bytes(prefix, "little")
        if header_bytes > min(size - HEADER_LENGTH_BYTES, MAX_HEADER_BYTES):
            raise bad(
                f"the header should have {header_bytes} bytes, but the whole file has {size}: "
                "it is truncated or not a safetensors file"
            )
        raw = stream.read(header_bytes)
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
        json.dumps(header, ensure_ascii=False).encode()  # Half a character is no character.
    except (ValueError, RecursionError) as error:
        raise bad(f"the header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise bad("the header is not a JSON object")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise bad("its __metadata__ is not an object of strings")
    data_start = HEADER_LENGTH_BYTES + header_bytes
    entries = {}
    for name, fields in header.items():
        entries[name] = _tensor_entry(path, name, fields, data_start, bad)
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            raise bad(f"tensor {name!r} starts at byte {entry.start}, expected {position}")
        position = entry.end
    if position != size:
        raise bad(f"its tensors end at byte {position}, but the file has {size} bytes")
    return entries


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _tensor_entry(
    path: Path, name: str, fields: Any, data_start: int, bad: Callable[[str], CheckpointError]
) -> TensorEntry:
    if not isinstance(fields, dict):
        raise bad(f"the entry of tensor {name!r} is not an object")
    dtype, shape, offsets = (fields.get(k) for k in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {dtype!r}; supported are float32 (F32) and "
            "bfloat16 (BF16). Convert the checkpoint to one of them."
        )
    if not _are_naturals(shape) or not _are_naturals(offsets) or len(offsets) != 2:
        raise bad(f"tensor {name!r} has shape {shape!r} and data_offsets {offsets!r}")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != expected:
        raise bad(f"tensor {name!r} needs {expected} bytes, its offsets are {offsets}")
    return TensorEntry(
        path, DTYPES[dtype], tuple(shape), data_start + offsets[0], data_start + offsets[1]
    )


def _are_naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


class CheckpointFolder:
    """The safetensors files of a local folder: one file, or several with an index."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._entries: dict[str, TensorEntry] = {}
        for file in checkpoint_files(self.folder):
            for name, entry in read_safetensors_header(file).items():
                if name in self._entries:
                    raise CheckpointError(
                        f"{file}: tensor {name!r} is also in {self._entries[name].file}"
                    )
                self._entries[name] = entry

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        return self._entries[name].read()


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or else those that its index names.

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
                raise CheckpointError(f"{index}: {name!r} is not the name of a file beside it")
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

    Kernels and embeddings are normal with standard deviation 0.02, as transformers initialises
    Qwen2; biases too, so that a mistake in one is seen; norms are 1.
    """

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._shapes = expected_shapes(config)
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


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint of this config, with its shape as PyTorch lays it out."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for index in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def check_weights(weights: Weights, config: ModelConfig, source: str) -> None:
    """Checks that the weights are exactly those of the config.

    A tied model may carry a copy of its head all the same.

    Raises:
      CheckpointError: naming each tensor that is missing, extra or wrongly shaped.
    """
    found, expected = dict(weights.shapes()), expected_shapes(config)
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
