"""File names, dtypes and samples of a dataset on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from activation_dataset.sites import DEFAULT_HOOK_POINT, HOOK_POINTS, Site, place_of, site_of

SCHEMA_VERSION = 1

METADATA_FILE = "metadata.json"
RUN_FILE = "run.json"
ERRORS_FOLDER = "errors"
REJECTED_FILE = f"{ERRORS_FOLDER}/rejected.jsonl"
PROMPTS_FOLDER = "prompts"
INDEX_FOLDER = "index"
MANIFESTS_FOLDER = "manifests"

Pooling = Literal["last", "mean", "none"]
StorageDtype = Literal["float32", "bfloat16"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
STORAGE_DTYPES: tuple[StorageDtype, ...] = get_args(StorageDtype)

_DATA_FILE = re.compile(
    r"(?:layer_(\d+)(?:_([a-z_]+))?/activations|prompts/prompts)"
    r"-(\d{5,9})-of-(\d{5,9})\.tfrecord"
)
_PARTIAL = re.compile(r".+\.partial-[0-9a-f]{8,32}")


@dataclass(frozen=True, eq=False)
class Sample:
    """Description of one prompt in the records of a layer file.

    Attributes:
        sample_id, task_id: unique id, and id of the task as its file gives it.
        token_ids: [n] int32. Pooling "none" and "mean": all tokens of the prompt. Pooling "last":
            the token whose vector is stored.
        num_tokens: tokens of the whole prompt.
        truncated_tokens: tokens that were cut off its end, as the prompt was too long.
    """

    sample_id: str
    task_id: str
    token_ids: NDArray[np.int32]
    num_tokens: int
    truncated_tokens: int = 0

    def __post_init__(self) -> None:
        if self.token_ids.dtype != np.int32 or self.token_ids.ndim != 1:
            raise TypeError(
                f"sample {self.sample_id!r}: token_ids is {self.token_ids.dtype} of shape "
                f"{self.token_ids.shape}, expected int32 of shape [n]"
            )


def layer_folder(site: Site) -> str:
    """Name of the folder of a site's files, such as "layer_10" or "layer_10_mlp_out"."""
    layer, hook_point = place_of(site)
    return f"layer_{layer}" + ("" if hook_point == DEFAULT_HOOK_POINT else f"_{hook_point}")


def shard_file(site: Site, shard: int, num_shards: int) -> str:
    """Path of a layer file relative to the dataset's folder, always with "/"."""
    return f"{layer_folder(site)}/activations-{_number(shard, num_shards)}.tfrecord"


def prompts_file(shard: int, num_shards: int) -> str:
    """Path of the prompts of a shard relative to the dataset's folder, always with "/"."""
    return f"{PROMPTS_FOLDER}/prompts-{_number(shard, num_shards)}.tfrecord"


def data_file(site: Site | None, shard: int, num_shards: int) -> str:
    """Path of the layer file of a site, or of the prompts if `site` is None."""
    if site is None:
        return prompts_file(shard, num_shards)
    return shard_file(site, shard, num_shards)


def manifest_file(site: Site | None, shard: int, num_shards: int) -> str:
    """Path of the manifest of a layer file, or of a file of prompts if `site` is None."""
    name = PROMPTS_FOLDER if site is None else layer_folder(site)
    return f"{MANIFESTS_FOLDER}/{name}-{_number(shard, num_shards)}.json"


def index_file(shard: int, num_shards: int) -> str:
    """Path of the index of a shard relative to the dataset's folder, always with "/"."""
    return f"{INDEX_FOLDER}/shard-{_number(shard, num_shards)}.index"


def parse_data_file(path: str) -> tuple[Site | None, int, int] | None:
    """Site, shard and number of shards of a path that `data_file` made, or else None."""
    match = _DATA_FILE.fullmatch(path)
    if match is None:
        return None
    layer, hook_point, *numbers = match.groups()
    shard, num_shards = map(int, numbers)
    hook_point = hook_point or DEFAULT_HOOK_POINT
    if hook_point not in HOOK_POINTS or shard >= num_shards:
        return None
    site = None if layer is None else site_of(int(layer), hook_point)
    return (site, shard, num_shards) if path == data_file(site, shard, num_shards) else None


def _number(shard: int, num_shards: int) -> str:
    if not 0 <= shard < num_shards:
        raise ValueError(f"shard {shard} is not in 0..{num_shards - 1}")
    return f"{shard:05d}-of-{num_shards:05d}"


def partial_file(path: str, unique: str) -> str:
    """Name under which `path` is written until it is complete.

    No other writer may use the `unique` part, 8 to 32 lower-case hexadecimal digits.
    """
    return f"{path}.partial-{unique}"


def is_partial_file(path: str) -> bool:
    """Return True for a path that `partial_file` made: never complete, always safe to delete."""
    return _PARTIAL.fullmatch(path) is not None


def numpy_dtype(storage_dtype: StorageDtype) -> np.dtype[Any]:
    """Dtype of stored elements: little-endian float32, or uint16 with the bits of bfloat16."""
    if storage_dtype == "float32":
        return np.dtype("<f4")
    if storage_dtype == "bfloat16":
        return np.dtype("<u2")
    raise ValueError(f"storage dtype {storage_dtype!r} is not one of {', '.join(STORAGE_DTYPES)}")


def to_float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Convert stored elements, float32 or bits of bfloat16 in uint16, to float32 without loss."""
    if stored.dtype == np.uint16:
        widened = stored.astype(np.uint32)
        widened <<= 16
        return widened.view(np.float32)
    if stored.dtype == np.float32:
        return stored.astype(np.float32, copy=False)
    raise TypeError(f"stored elements are {stored.dtype}, expected float32, or uint16 for bfloat16")
