"""Small datasets, written as the pipeline writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import (
    Pooling,
    Sample,
    StorageDtype,
    prompts_file,
    shard_file,
)
from activation_dataset.manifest import Manifest, shards_of
from activation_dataset.metadata import InputFile, Metadata, RunDescription
from activation_dataset.prompts import Prompt, write_prompts
from activation_dataset.sites import HOOK_POINTS, HookPoint, Site, place_of
from activation_dataset.statistics import OrderedMerge
from activation_dataset.writer import LayerFileWriter

LAYERS = (10, 11, 12)


def make_samples(lengths: list[int], pooling: Pooling, seed: int = 0) -> list[Sample]:
    """One sample for each prompt length, its token ids random over Qwen's vocabulary."""
    rng = np.random.default_rng(seed)
    samples = []
    for index, length in enumerate(lengths):
        tokens = rng.integers(0, 151_936, length, dtype=np.int32)
        samples.append(
            Sample(
                sample_id=f"training/é{seed}.json#{index:08x}/0",
                task_id=f"{index:08x}",
                token_ids=tokens[-1:] if pooling == "last" else tokens,
                num_tokens=length,
            )
        )
    return samples


def text_prompt(sample_id: str, task_id: str, token_ids: NDArray[np.int32]) -> Prompt:
    """A prompt that shows no grid."""
    return Prompt(sample_id, task_id, token_ids, np.full((len(token_ids), 4), -1, np.int16))


def make_prompts(lengths: list[int], seed: int = 0) -> list[Prompt]:
    """The prompts of `make_samples`: after a word, the cells of a column, then a word."""
    prompts = []
    for sample in make_samples(lengths, "none", seed):
        cells = np.full((sample.num_tokens, 4), -1, np.int16)
        inner = cells[1:-1]
        inner[:] = np.arange(len(inner))[:, None] * [0, 0, 1, 0] + [0, 1, 0, 2]
        prompts.append(Prompt(sample.sample_id, sample.task_id, sample.token_ids, cells))
    return prompts


def make_rows(
    samples: list[Sample], pooling: Pooling, hidden: int, seed: int
) -> NDArray[np.float32]:
    """[vectors, hidden] float32 with one dimension of massive activations, as Qwen has."""
    count = sum(sample.num_tokens for sample in samples) if pooling == "none" else len(samples)
    rows = np.random.default_rng(seed).standard_normal((count, hidden), dtype=np.float32)
    rows[:, -1] *= 300
    return rows


def row_counts(samples: list[Sample], pooling: Pooling) -> list[int]:
    return [sample.num_tokens if pooling == "none" else 1 for sample in samples]


def row_seed(site: Site, shard: int) -> int:
    """The seed of `make_rows` for the rows of a site in a shard."""
    layer, hook_point = place_of(site)
    return 100 * layer + shard + (10_000 * (4 - HOOK_POINTS.index(hook_point)))


def describe(
    pooling: Pooling,
    storage_dtype: StorageDtype,
    hidden: int,
    layers: tuple[int, ...] = LAYERS,
    hook_points: tuple[HookPoint, ...] = ("resid_post",),
) -> RunDescription:
    return RunDescription(
        model_name="random:tiny",
        layers_extracted=layers,
        hidden_dim=hidden,
        pooling=pooling,
        hook_points=hook_points,
        storage_dtype=storage_dtype,
        compute_dtype="bfloat16",
        prompt_template={"name": "grid", "user": "digits"},
        tokenizer={"fingerprint": "sha256:00"},
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
) -> Metadata:
    """Writes a dataset with the given prompt lengths in each shard, and returns its metadata.

    The samples of a shard are those of `make_samples` with its seed, by default its number.
    """
    run = describe(pooling, storage_dtype, hidden, layers, hook_points)
    merges = {site: OrderedMerge() for site in run.sites}
    manifests: list[Manifest] = []
    (folder / "prompts").mkdir(parents=True)
    for shard, lengths in enumerate(shards):
        seed = seeds[shard] if seeds else shard
        samples = make_samples(lengths, pooling, seed)
        with open(folder / prompts_file(shard, len(shards)), "wb") as stream:
            prompts = prompts_of(lengths, seed)
            manifests.append(write_prompts(stream, prompts, shard, len(shards)))
        for site in run.sites:
            path = folder / shard_file(site, shard, len(shards))
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as stream:
                writer = LayerFileWriter(stream, site, pooling, storage_dtype, hidden)
                rows = make_rows(samples, pooling, hidden, seed=row_seed(site, shard))
                writer.append(samples, rows, row_counts(samples, pooling))
            manifest = writer.finish(shard, len(shards))
            manifests.append(manifest)
            merges[site].add(shard, manifest.file.statistics)
    metadata = Metadata(
        run=run,
        shards=shards_of(manifests, run.sites, len(shards)),
        rejected=rejected or {},
        statistics={site: merge.result(len(shards)) for site, merge in merges.items()},
    )
    (folder / "metadata.json").write_text(metadata.to_json(), "utf-8")
    return metadata
