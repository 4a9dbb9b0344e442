"""Weights of a model: safetensors files in the Hugging Face layout, or seeded random values."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import ml_dtypes
import numpy as np

from qwen.config import ModelConfig
from qwen.families import LAYER_PREFIX, family_of
from qwen.families.tensor_names import DEQUANTIZE, TRUNK, first_refused, kind_of
from qwen.load_once import load_once
from qwen.other_formats import absence, content_kind, explain

LOGGER = logging.getLogger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")
"""Supported dtypes of weights on disk."""

_SHAPE_FIELDS = (
    "hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim and "
    "vocab_size"
)
"""Fields of config.json that determine most shapes."""

LARGE, BLOCK = 1 << 24, 1 << 20
"""Number of values above which a random tensor is drawn from a table, and number of values drawn
at a time."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or does not match its config."""


@dataclass(frozen=True)
class _Tensor:
    """One tensor of a memory-mapped safetensors file."""

    file: Any
    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        tensor: np.ndarray = self.file.get_tensor(self.name)
        return tensor


@dataclass(frozen=True)
class _JoinedExperts:
    """One tensor for all experts, joined from a checkpoint's tensors of single experts.

    Attributes:
        parts: for each expert, the tensors to join along their first axis.
    """

    parts: tuple[tuple[_Tensor, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0]
        return (len(self.parts), sum(part.shape[0] for part in first), *first[0].shape[1:])

    @property
    def worst(self) -> _Tensor:
        """A part with an unsupported dtype if there is one, else any part."""
        return min(
            (part for parts in self.parts for part in parts), key=lambda p: p.dtype in FLOAT_DTYPES
        )

    @property
    def path(self) -> Path:
        return self.worst.path

    @property
    def dtype(self) -> str:
        return self.worst.dtype

    def read(self) -> np.ndarray:
        return np.stack([np.concatenate([part.read() for part in parts]) for parts in self.parts])


_EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(gate|up|down)_proj\.weight")


def _with_experts_joined(tensors: Mapping[str, _Tensor]) -> dict[str, _Tensor | _JoinedExperts]:
    """Join the tensors of single experts into the tensors that transformers has in memory.

    Layers with a missing expert, a missing tensor or tensors of different shapes stay unchanged.
    """
    found: dict[str, dict[tuple[int, str], _Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := _EXPERT.fullmatch(name):
            found[match[1]][int(match[2]), match[3]] = tensor
    joined: dict[str, _Tensor | _JoinedExperts] = dict(tensors)
    for prefix, parts in found.items():
        count = len(parts) // 3
        for name, kinds in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            keys = [[(expert, kind) for kind in kinds] for expert in range(count)]
            rows = [[parts.get(key) for key in each] for each in keys]
            shapes = {part and part.shape for row in rows for part in row}
            if len(shapes) != 1 or None in shapes or len(parts) != 3 * count:
                break
            joined[prefix + name] = _JoinedExperts(tuple(map(tuple, rows)))  # type: ignore[arg-type]
            for expert in range(count):
                for kind in kinds:
                    del joined[f"{prefix}{expert}.{kind}_proj.weight"]
    return joined


class CheckpointFolder:
    """Safetensors files of a local folder: one file, or several with an index.

    The files are memory-mapped; only tensors that are read take memory.

    Attributes:
        unread_files: names of the other safetensors files in the folder.
    """

    def __init__(
        self, folder: str | os.PathLike[str], names: Callable[[], Sequence[str]] | None = None
    ) -> None:
        """Read and check the headers.

        Args:
            folder: the folder.
            names: function that returns the names of all files in the original location of the
                folder, for an error message.

        Raises:
            CheckpointError: if a file is missing, damaged or ambiguous. The message names the file
                and says what to do.
        """
        stored: dict[str, _Tensor] = {}
        files = checkpoint_files(Path(folder), names)
        for path in files:
            tensors = _open_safetensors(path)
            if twice := stored.keys() & tensors.keys():
                name = min(twice)
                raise CheckpointError(
                    f"{path}: tensor {name!r} is also in {stored[name].path}. Remove one of them."
                )
            stored |= tensors
        self._tensors = _with_experts_joined(stored)
        present = {file.name for file in Path(folder).glob("*.safetensors")}
        self.unread_files = sorted(present - {file.name for file in files})

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each tensor by name."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Read a tensor from disk."""
        return self._tensors[name].read()

    def renamed(self, names: Mapping[str, str]) -> CheckpointFolder:
        """Return a folder with only the tensors in `names`, a mapping of new to current names.

        Raises:
            CheckpointError: if one of the tensors has a dtype not in `FLOAT_DTYPES`.
        """
        for name in names.values():
            tensor = self._tensors[name]
            if tensor.dtype not in FLOAT_DTYPES:
                method = "FP8" if tensor.dtype.startswith("F8") else "an unknown method"
                raise CheckpointError(
                    f"{tensor.path}: tensor {name!r} has dtype {tensor.dtype}, so it was quantized "
                    f"with {method}; supported dtypes are {', '.join(FLOAT_DTYPES)}. {DEQUANTIZE}."
                )
        chosen = copy.copy(self)
        chosen._tensors = {new: self._tensors[name] for new, name in names.items()}
        return chosen


def _open_safetensors(path: Path) -> dict[str, _Tensor]:
    """Return every tensor of a file by name.

    The safetensors library checks that the header is valid and that the tensors fill the file
    exactly.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as stream:
            start = stream.read(64)
        file = safe_open(path, framework="numpy")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); give this user permission to read it"
        ) from error
    except SafetensorError as error:
        kind = (
            content_kind(start) or f"truncated, damaged or not a safetensors file ({error!s:.200})"
        )
        raise CheckpointError(f"{path}: {kind}. Download or copy the file again.") from error
    return {
        name: _Tensor(file, path, name, tuple(each.get_shape()), each.get_dtype())
        for name, each in slices.items()
    }


def checkpoint_files(folder: Path, names: Callable[[], Sequence[str]] | None = None) -> list[Path]:
    """Return the safetensors files of a checkpoint: a single file, or the files of an index.

    The arguments are the same as in `CheckpointFolder`.

    Raises:
        CheckpointError: if there are no files, or the index names a missing file.
    """
    index = folder / INDEX_FILE
    if os.path.lexists(folder / SINGLE_FILE):
        files, named = [folder / SINGLE_FILE], ""
    elif index.exists():
        try:
            listed = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{index}: expected a JSON object with a 'weight_map' of tensor to file ({error})"
            ) from error
        for name in listed:
            if not isinstance(name, str) or name in ("", ".", "..") or "/" in name:
                raise CheckpointError(f"{index}: {name!r} is not the name of a file next to it")
        files, named = sorted(folder / name for name in listed), f", but {INDEX_FILE} names it"
    else:
        files, named = [], ""
    if not files:
        raise CheckpointError(
            f"{folder}: no weights found. Expected {SINGLE_FILE} or {INDEX_FILE}; "
            + explain(folder, names() if names else sorted(os.listdir(folder)))
        )
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{file} {absence(file)}{named}. Download it again.")
    return files


class RandomWeights:
    """Seeded random weights in the shapes of a config, drawn tensor by tensor.

    Kernels and embeddings are normal with standard deviation 0.02, as in transformers. Biases have
    the same distribution, so that errors in handling them are visible. Scales of norms are 1. A
    delta network has the decay rates of transformers, and the taps of its convolution preserve the
    variance.
    """

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._shapes = family_of(config).tensor_shapes(config)
        self._zero_centered = config.zero_centered_norms
        self.seed = seed

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each tensor by name."""
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        """Draw a tensor, which depends only on the seed, its name and its shape."""
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            from_one = self._zero_centered and not name.endswith(".linear_attn.norm.weight")
            return np.full(shape, 0 if from_one else 1, np.float32)
        if name.endswith(".dt_bias"):
            return np.ones(shape, np.float32)
        generator = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        if name.endswith(".A_log"):
            return np.log(generator.uniform(0.01, 16, shape)).astype(ml_dtypes.bfloat16)
        deviation = shape[-1] ** -0.5 if name.endswith(".conv1d.weight") else 0.02
        if math.prod(shape) > LARGE:
            return _drawn_from_table(generator, shape, deviation)
        values = generator.standard_normal(shape, np.float32)
        values *= deviation
        return values.astype(ml_dtypes.bfloat16)


def _drawn_from_table(
    generator: np.random.Generator, shape: tuple[int, ...], deviation: float
) -> np.ndarray:
    """Draw values from 65,536 quantiles of the normal distribution, in blocks to save memory."""
    quantiles = (_normal_quantiles() * deviation).astype(ml_dtypes.bfloat16)
    values = np.empty(math.prod(shape), ml_dtypes.bfloat16)
    for part in np.array_split(values, -(-values.size // BLOCK)):
        chosen = generator.integers(0, len(quantiles), part.size, np.uint16)
        np.take(quantiles, chosen, out=part, mode="clip")
    return values.reshape(shape)


@load_once
def _normal_quantiles() -> np.ndarray:
    normal, number = NormalDist(), 1 << 16
    return np.array([normal.inv_cdf((i + 0.5) / number) for i in range(number)])


Weights = CheckpointFolder | RandomWeights
"""Source of floating-point tensors by name, in PyTorch's layout."""


def tensors_of_model(
    weights: CheckpointFolder, config: ModelConfig, source: str
) -> CheckpointFolder:
    """Return the tensors that activations depend on, by the names that the model's family uses.

    A checkpoint may have another prefix, more layers than its config, and tensors that no
    activation depends on. The log names the tensors that are left out, except the head.

    Raises:
        CheckpointError: if a tensor is missing, unknown or has the wrong shape. The message names
            the first such tensors.
    """
    family, found = family_of(config), weights.shapes()
    if refused := first_refused(found):
        name, what, remedy = refused
        raise CheckpointError(f"{source}: the tensor {name!r} shows that this is {what}. {remedy}.")
    embedding = family.embedding(config).names[0].removeprefix(TRUNK)
    prefixes = [prefix for prefix in family.prefixes if prefix + embedding in found]
    if len(prefixes) > 1:
        both = " and ".join(repr(prefix + embedding) for prefix in prefixes)
        raise CheckpointError(
            f"{source}: the checkpoint contains two models: {both}. Remove one of them."
        )
    prefix = prefixes[0] if prefixes else TRUNK
    expected = {
        prefix + name.removeprefix(TRUNK): (name, shape)
        for name, shape in family.tensor_shapes(config).items()
        if kind_of(name, family.left_out) is None
    }
    layer_of = re.compile(
        re.escape(prefix + LAYER_PREFIX.removeprefix(TRUNK)).replace(r"\{\}", r"(\d+)")
    )
    problems: dict[str, list[str]] = defaultdict(list)
    left_out: dict[str, list[str]] = defaultdict(list)
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            problems["missing"].append(name)
        elif name in expected:
            if found[name] != (needed := expected[name][1]):
                problems["wrong shape"].append(
                    f"{name} has shape {list(found[name])}, but the config needs {list(needed)}"
                )
        elif (layer := layer_of.match(name)) and int(layer[1]) >= config.num_hidden_layers:
            left_out[f"layers from num_hidden_layers={config.num_hidden_layers} on"].append(name)
        elif kind := kind_of(name, family.left_out):
            if kind.reported:
                left_out[kind.what].append(name)
        else:
            problems["not part of the model"].append(name)
    if problems:
        listed = "; ".join(f"{what}: {_listed(names)}" for what, names in problems.items())
        fields = f". Check {_SHAPE_FIELDS} in config.json" if "wrong shape" in problems else ""
        raise CheckpointError(f"{source}: the tensors do not match config.json; {listed}{fields}")
    if weights.unread_files:
        left_out["files that are not part of the checkpoint"] = weights.unread_files
    for what, names in left_out.items():
        _warn(f"{source}: left out {what}: {_listed(names)}")
    return weights.renamed({name: stored for stored, (name, _) in expected.items()})


def _listed(names: list[str], at_most: int = 3) -> str:
    rest = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + rest


@load_once
def _warn(message: str) -> None:
    LOGGER.warning(message)
