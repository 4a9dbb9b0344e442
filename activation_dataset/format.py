"""What a dataset on disk looks like: names of files, dtypes, and what one sample is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from activation_dataset.sites import DEFAULT_HOOK_POINT, HOOK_POINTS, Site, parse_site, place_of

SCHEMA_VERSIONS = (1, 2)
"""Those that can be read and written; docs/format.md tells them apart."""

METADATA_FILE = "metadata.json"
RUN_FILE = "run.json"
ERRORS_FOLDER = "errors"
PROMPTS_FOLDER = "prompts"
INDEX_FOLDER = "index"

Pooling = Literal["last", "mean", "none"]
StorageDtype = Literal["float32", "bfloat16"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
STORAGE_DTYPES: tuple[StorageDtype, ...] = get_args(StorageDtype)

_SHARD_PATH = re.compile(
    rf"layer_(0|[1-9]\d{{0,8}})(?:_({'|'.join(HOOK_POINTS)}))?/"
    r"activations-(\d{5,})-of-(\d{5,})\.tfrecord"
)
_PROMPTS_PATH = re.compile(r"prompts/prompts-(\d{5,})-of-(\d{5,})\.tfrecord")
_PARTIAL = re.compile(r".+\.partial-[0-9a-f]{8,32}")


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt, as its records describe it.

    Attributes:
        sample_id: unique in the dataset.
        task_id: id of the task, as its file gives it.
        token_ids: [n] int32, one for each vector: pooling "none": the whole prompt; "last": the
            one pooled token. For "mean": the whole prompt, all of whose tokens were averaged.
        num_tokens: tokens of the whole prompt.
    """

    sample_id: str
    task_id: str
    token_ids: NDArray[np.int32]
    num_tokens: int

    def __post_init__(self) -> None:
        if self.token_ids.dtype != np.int32 or self.token_ids.ndim != 1:
            raise TypeError(
                f"sample {self.sample_id!r}: token_ids is {self.token_ids.dtype} of shape "
                f"{self.token_ids.shape}, expected int32 of shape [n]"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sample):
            return NotImplemented
        return (
            self.sample_id == other.sample_id
            and self.task_id == other.task_id
            and self.num_tokens == other.num_tokens
            and np.array_equal(self.token_ids, other.token_ids)
        )


def layer_folder(site: Site) -> str:
    """Name of the folder that holds a site's files, such as "layer_10" and "layer_10_mlp_out"."""
    layer, hook_point = place_of(site)
    return f"layer_{layer}" + ("" if hook_point == DEFAULT_HOOK_POINT else f"_{hook_point}")


def shard_file(site: Site, shard: int, num_shards: int) -> str:
    """Path of a layer file below the dataset's folder, always with "/"."""
    if not 0 <= shard < num_shards:
        raise ValueError(f"shard {shard} is not in 0..{num_shards - 1}")
    return f"{layer_folder(site)}/activations-{shard:05d}-of-{num_shards:05d}.tfrecord"


def parse_shard_file(path: str) -> tuple[Site, int, int] | None:
    """(site, shard, num_shards) of a path that `shard_file` made, else None."""
    match = _SHARD_PATH.fullmatch(path)
    if match is None:
        return None
    layer, hook_point, *numbers = match.groups()
    site = parse_site(f"blocks.{layer}.hook_{hook_point or DEFAULT_HOOK_POINT}")
    shard, num_shards = map(int, numbers)
    if shard >= num_shards or path != shard_file(site, shard, num_shards):
        return None
    return site, shard, num_shards


def prompts_file(shard: int, num_shards: int) -> str:
    """Path of the file of a shard's prompts below the dataset's folder, always with "/"."""
    if not 0 <= shard < num_shards:
        raise ValueError(f"shard {shard} is not in 0..{num_shards - 1}")
    return f"{PROMPTS_FOLDER}/prompts-{shard:05d}-of-{num_shards:05d}.tfrecord"


def parse_prompts_file(path: str) -> tuple[int, int] | None:
    """(shard, num_shards) of a path that `prompts_file` made, else None."""
    match = _PROMPTS_PATH.fullmatch(path)
    if match is None:
        return None
    shard, num_shards = (int(group) for group in match.groups())
    if shard >= num_shards or path != prompts_file(shard, num_shards):
        return None
    return shard, num_shards


def index_file(shard: int, num_shards: int) -> str:
    """Path of a shard's index below the dataset's folder, always with "/"."""
    return f"{INDEX_FOLDER}/shard-{shard:05d}-of-{num_shards:05d}.index"


def partial_file(path: str, unique: str) -> str:
    """Name under which `path` is written until it is whole.

    Args:
        path: the final path.
        unique: 8 to 32 lower-case hexadecimal digits that no other writer uses.
    """
    partial = f"{path}.partial-{unique}"
    if not is_partial_file(partial):
        raise ValueError(f"{unique!r} is not 8 to 32 lower-case hexadecimal digits")
    return partial


def is_partial_file(path: str) -> bool:
    """Whether the path is one that `partial_file` makes: never whole, always safe to delete."""
    return _PARTIAL.fullmatch(path) is not None


def numpy_dtype(storage_dtype: StorageDtype) -> np.dtype[Any]:
    """The dtype of stored elements: little-endian float32, or uint16 holding bfloat16's bits."""
    if storage_dtype == "float32":
        return np.dtype("<f4")
    if storage_dtype == "bfloat16":
        return np.dtype("<u2")
    raise ValueError(f"storage dtype {storage_dtype!r} is not one of {', '.join(STORAGE_DTYPES)}")


def to_storage(values: NDArray[Any], storage_dtype: StorageDtype) -> NDArray[Any]:
    """Values as they are stored, C-contiguous; a copy only where bytes must change.

    Args:
        values: float32, or bfloat16 as ml_dtypes has it or as its bits in uint16; any shape.
        storage_dtype: "bfloat16" rounds float32 to the nearest, ties to even; "float32" widens
            bfloat16 exactly.
    """
    target = numpy_dtype(storage_dtype)
    if values.dtype.name == "bfloat16":
        values = values.view(np.uint16)
    if values.dtype == np.uint16:
        stored = values if storage_dtype == "bfloat16" else bfloat16_to_float32(values)
    elif values.dtype == np.float32:
        stored = values if storage_dtype == "float32" else float32_to_bfloat16(values)
    else:
        raise TypeError(
            f"activations have dtype {values.dtype}; allowed are float32, and bfloat16 as "
            "ml_dtypes.bfloat16 or as its bits in uint16"
        )
    return np.ascontiguousarray(stored, target)


def to_float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Stored elements ("<f4", or "<u2" with bfloat16's bits) as native float32; exact."""
    if stored.dtype == np.uint16:
        return bfloat16_to_float32(stored)
    if stored.dtype == np.float32:
        return stored.astype(np.float32, copy=False)
    raise TypeError(f"dtype {stored.dtype} is not a storage dtype: float32, or uint16 for bfloat16")


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """float32 of bfloat16 given as its bits; exact, any shape."""
    widened = bits.astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)


def float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even; a NaN stays a NaN of its sign."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += bits
    rounded += 0x7FFF  # wraps around only for NaN, which is put right below
    rounded >>= 16
    narrow = rounded.astype(np.uint16)
    is_nan = np.isnan(values)
    if is_nan.any():
        narrow[is_nan] = (bits[is_nan] >> 16).astype(np.uint16) | 0x0040
    return narrow
