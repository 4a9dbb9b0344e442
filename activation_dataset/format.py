"""File names and samples of a dataset on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

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
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

_DATA_FILE = re.compile(
    r"(?:layer_(\d+)(?:_([a-z_]+))?/activations|prompts/prompts)"
    r"-(\d{5,9})-of-(\d{5,9})\.tfrecord"
)
_PARTIAL = re.compile(r".+\.partial-[0-9a-f]{8,32}")


@dataclass(frozen=True, eq=False)
class Sample:
    """Description of one prompt in the records of a layer file.

    Attributes:
        sample_id: unique id.
        task_id: id of the task in its file.
        token_ids: [n] int32. Pooling "none" and "mean": the chosen tokens of the prompt, whose
            vectors are stored or averaged. Pooling "last": the token whose vector is stored.
        num_tokens: number of tokens of the whole prompt.
        truncated_tokens: number of tokens that were cut off the end of a prompt that was too long.
        positions: [n] int32, positions of the chosen tokens in the prompt, ascending; None if all
            tokens are chosen, and with pooling "last".
        offset: number of tokens of the document before the prompt, if the prompt is a window of a
            document; otherwise 0.
        prepended_bos: True if the prompt begins with a token that is not in the document.
    """

    sample_id: str
    task_id: str
    token_ids: NDArray[np.int32]
    num_tokens: int
    truncated_tokens: int = 0
    positions: NDArray[np.int32] | None = None
    offset: int = 0
    prepended_bos: bool = False

    def __post_init__(self) -> None:
        for name in ("token_ids", "positions"):
            array = getattr(self, name)
            if array is not None and (array.dtype != np.int32 or array.ndim != 1):
                raise TypeError(
                    f"sample {self.sample_id!r}: {name} is {array.dtype} of shape {array.shape}, "
                    "expected int32 of shape [n]"
                )


def layer_folder(site: Site) -> str:
    """Return the name of the folder of a site, such as "layer_10" or "layer_10_mlp_out"."""
    layer, hook_point = place_of(site)
    return f"layer_{layer}" + ("" if hook_point == DEFAULT_HOOK_POINT else f"_{hook_point}")


def shard_file(site: Site, shard: int, num_shards: int) -> str:
    """Return the path of a layer file in the dataset's folder, always with "/"."""
    return f"{layer_folder(site)}/activations-{_number(shard, num_shards)}.tfrecord"


def prompts_file(shard: int, num_shards: int) -> str:
    """Return the path of the prompts of a shard in the dataset's folder, always with "/"."""
    return f"{PROMPTS_FOLDER}/prompts-{_number(shard, num_shards)}.tfrecord"


def data_file(site: Site | None, shard: int, num_shards: int) -> str:
    """Return the path of the layer file of a site, or of the prompts if `site` is None."""
    if site is None:
        return prompts_file(shard, num_shards)
    return shard_file(site, shard, num_shards)


def manifest_file(site: Site | None, shard: int, num_shards: int) -> str:
    """Return the path of the manifest of a layer file, or of the prompts if `site` is None."""
    name = PROMPTS_FOLDER if site is None else layer_folder(site)
    return f"{MANIFESTS_FOLDER}/{name}-{_number(shard, num_shards)}.json"


def index_file(shard: int, num_shards: int) -> str:
    """Return the path of the index of a shard in the dataset's folder, always with "/"."""
    return f"{INDEX_FOLDER}/shard-{_number(shard, num_shards)}.index"


def parse_data_file(path: str) -> tuple[Site | None, int, int] | None:
    """Return the site, shard and number of shards of a `data_file` path; None for another path."""
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
    """Return the temporary name of a file that is not complete.

    Args:
        path: final path of the file.
        unique: 8 to 32 lower-case hexadecimal digits that no other writer uses.
    """
    return f"{path}.partial-{unique}"


def is_partial_file(path: str) -> bool:
    """Return True for a path from `partial_file`, whose file is always safe to delete."""
    return _PARTIAL.fullmatch(path) is not None
