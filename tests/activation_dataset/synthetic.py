"""Small datasets with the files that the job writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from activation_dataset.fields import Json
from activation_dataset.format import Pooling, Sample, prompts_file, shard_file
from activation_dataset.input_counts import InputCounts, Written
from activation_dataset.manifest import Manifest, shards_of
from activation_dataset.metadata import InputFile, Metadata, RunDescription
from activation_dataset.prompts import Prompt, write_prompts
from activation_dataset.record import RecordFrame, RecordKind, frame_record
from activation_dataset.sites import HOOK_POINTS, HookPoint, Site, place_of
from activation_dataset.statistics import LayerStatistics, OrderedMerge
from activation_dataset.storage_dtype import LARGEST_ELEMENT, StorageDtype
from activation_dataset.writer import LayerFileWriter

LAYERS = (10, 11, 12)
DIGITS: Json = [[15 + digit] for digit in range(10)]


def text_prompt(sample_id: str, task_id: str, token_ids: NDArray[np.int32]) -> Prompt:
    """Return a prompt without a grid."""
    return Prompt(sample_id, task_id, token_ids, np.full((len(token_ids), 4), -1, np.int16))


def make_prompts(lengths: Sequence[int], seed: int = 0) -> list[Prompt]:
    """Return prompts of the given lengths: a word, the cells of a column, and a word."""
    rng = np.random.default_rng(seed)
    prompts = []
    for index, length in enumerate(lengths):
        token_ids = rng.integers(0, 151_936, length, dtype=np.int32)
        cells = np.full((length, 4), -1, np.int16)
        inner = cells[1:-1]
        inner[:] = np.arange(len(inner))[:, None] * [0, 0, 1, 0] + [0, 1, 0, 2]
        sample_id = f"training/é{seed}.json#{index:08x}/0"
        prompts.append(Prompt(sample_id, f"{index:08x}", token_ids, cells))
    return prompts


def fields_of(sample: Sample | Prompt) -> dict[str, Any]:
    """Return the fields of a sample or prompt, with arrays as lists for comparisons."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(sample).items()
    }


def frames_of(prompts: Sequence[Prompt], kind: RecordKind) -> list[RecordFrame]:
    """Return the frames of prompts."""
    return [frame_record(kind.sample(prompt), kind) for prompt in prompts]


def counts_of(prompts: Iterable[Prompt], rejected: Mapping[str, int] | None) -> InputCounts:
    """Return the counts of prompts with one task each, and of rejected tasks by reason."""
    written = sum(map(Written.of, prompts), Written())
    written = replace(written, tasks=written.samples)
    reasons = (rejected or {}).items()
    return InputCounts.of(
        written, [("task", reason, 0) for reason, count in reasons for _ in range(count)]
    )


def stored(rows: NDArray[np.float32], storage_dtype: StorageDtype) -> NDArray[Any]:
    """Convert vectors [n, hidden] to stored rows."""
    if storage_dtype == "float32":
        return rows
    if storage_dtype == "bfloat16":
        return rows.astype(ml_dtypes.bfloat16).view(np.uint16)
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(LARGEST_ELEMENT[storage_dtype])
    scaled = rows / np.where(scales, scales, 1)
    if storage_dtype == "int8":
        elements = np.rint(scaled).astype(np.int8)
    else:
        elements = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return np.concatenate([scales.view(elements.dtype), elements], axis=1)


def make_rows(
    prompts: Sequence[Prompt], pooling: Pooling, hidden: int, seed: int
) -> NDArray[np.float32]:
    """Return [vectors, hidden] float32 with one dimension of massive activations, as in Qwen."""
    chosen = sum(len(prompt.chosen_ids) for prompt in prompts)
    count = chosen if pooling == "none" else len(prompts)
    rows = np.random.default_rng(seed).standard_normal((count, hidden), dtype=np.float32)
    rows[:, -1] *= 300
    return rows


def row_seed(site: Site, shard: int) -> int:
    """Return the seed of `make_rows` for a site of a shard."""
    layer, hook_point = place_of(site)
    return 100 * layer + shard + 10_000 * (len(HOOK_POINTS) - 1 - HOOK_POINTS.index(hook_point))


def describe(
    pooling: Pooling,
    storage_dtype: StorageDtype,
    hidden: int,
    layers: tuple[int, ...] = LAYERS,
    hook_points: tuple[HookPoint, ...] = ("resid_post",),
    widths: Mapping[Site, int] | None = None,
) -> RunDescription:
    """Return the description of a run."""
    return RunDescription(
        model_name="random:tiny",
        layers_extracted=layers,
        hidden_dim=hidden,
        widths=widths or {},
        pooling=pooling,
        hook_points=hook_points,
        storage_dtype=storage_dtype,
        compute_dtype="bfloat16",
        prompt_template={"name": "grid", "user": "digits"},
        model={"hidden_size": hidden},
        tokenizer={"fingerprint": "sha256:00", "digits": DIGITS},
        weights={"fingerprint": "sha256:01", "source": "random", "seed": 0},
        inputs=(InputFile("training.json", 3, "02"),),
        settings={"max_length": None, "samples_per_shard": 4},
        versions={"numpy": "2"},
    )


def write_dataset(
    folder: Path,
    shards: list[list[int]],
    pooling: Pooling = "last",
    storage_dtype: StorageDtype = "float32",
    hidden: int = 8,
    layers: tuple[int, ...] = LAYERS,
    rejected: Mapping[str, int] | None = None,
    seeds: Sequence[int] | None = None,
    prompts_of: Callable[[list[int], int], list[Prompt]] = make_prompts,
    hook_points: tuple[HookPoint, ...] = ("resid_post",),
    widths: Mapping[Site, int] | None = None,
) -> Metadata:
    """Write a dataset and return its metadata.

    Args:
        folder: folder to write.
        shards: prompt lengths of each shard.
        pooling: pooling of the vectors.
        storage_dtype: dtype of the stored elements.
        hidden: number of elements of a vector.
        layers: layer numbers.
        rejected: number of rejected tasks by reason.
        seeds: seed of each shard's prompts; the number of the shard by default.
        prompts_of: function that returns prompts of the given lengths for a seed.
        hook_points: hook points of each layer.
        widths: width of each site whose width is not `hidden`.
    """
    run = describe(pooling, storage_dtype, hidden, layers, hook_points, widths)
    merges = {site: OrderedMerge() for site in run.sites}
    manifests: list[Manifest] = []
    every: list[Prompt] = []
    (folder / "prompts").mkdir(parents=True)
    for shard, lengths in enumerate(shards):
        prompts = prompts_of(lengths, seeds[shard] if seeds else shard)
        every += prompts
        with open(folder / prompts_file(shard, len(shards)), "wb") as stream:
            manifests.append(write_prompts(stream, prompts, shard, len(shards)))
        for site in run.sites:
            path = folder / shard_file(site, shard, len(shards))
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = run.record_kind(site)
            rows = make_rows(prompts, pooling, kind.hidden, seed=row_seed(site, shard))
            vectors = stored(rows, storage_dtype)
            with open(path, "wb") as stream:
                writer = LayerFileWriter(stream, site, kind)
                writer.append(
                    frames_of(prompts, kind), vectors, LayerStatistics.of_vectors(vectors)
                )
            manifest = writer.finish(shard, len(shards), "xla")
            manifests.append(manifest)
            merges[site].add(shard, manifest.statistics)
    metadata = Metadata(
        run=run,
        shards=shards_of(manifests, run.sites, len(shards)),
        counts=counts_of(every, rejected),
        statistics={site: merge.result(len(shards)) for site, merge in merges.items()},
        ops=("xla",),
    )
    (folder / "metadata.json").write_text(metadata.to_json(), "utf-8")
    return metadata
