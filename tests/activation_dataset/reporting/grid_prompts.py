"""Datasets of prompts with grids, with vectors that the test chooses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import Pooling, prompts_file, shard_file
from activation_dataset.manifest import Manifest, shards_of
from activation_dataset.metadata import Metadata
from activation_dataset.prompts import NO_CELL, TEST_PAIR, Prompt, write_prompts
from activation_dataset.record import RecordKind
from activation_dataset.sites import HookPoint, place_of
from activation_dataset.statistics import LayerStatistics, OrderedMerge
from activation_dataset.storage_dtype import StorageDtype
from activation_dataset.writer import LayerFileWriter
from tests.activation_dataset.synthetic import LAYERS, counts_of, describe, frames_of, stored

ZERO, NEWLINE = 15, 198
"""Token ids of "0" and of a line break in Qwen's vocabulary."""


def grid_prompt(sample_id: str, sizes: Sequence[tuple[int, int]], seed: int = 0) -> Prompt:
    """Return a prompt with two grids for each size (height, width); the last size is the test."""
    rng = np.random.default_rng(seed)
    break_line = (NEWLINE, (NO_CELL,) * 4)
    tokens: list[tuple[int, tuple[int, ...]]] = []
    for number, (height, width) in enumerate(sizes):
        is_test = number == len(sizes) - 1
        for role in (0,) if is_test else (0, 1):
            tokens.append(break_line)
            for row in range(height):
                for column in range(width):
                    cell = (TEST_PAIR if is_test else number, role, row, column)
                    tokens.append((ZERO + int(rng.integers(10)), cell))
                tokens.append(break_line)
    task_id = sample_id.split("#")[1].split("/")[0]
    token_ids, cells = zip(*tokens, strict=True)
    return Prompt(sample_id, task_id, np.array(token_ids, np.int32), np.array(cells, np.int16))


def write_prompted(
    folder: Path,
    shards: Sequence[Sequence[Prompt]],
    vectors_of: Callable[[int, Prompt], NDArray[np.float32]],
    pooling: Pooling = "none",
    storage_dtype: StorageDtype = "float32",
    hidden: int = 8,
    layers: tuple[int, ...] = LAYERS,
    rejected: Mapping[str, int] | None = None,
    hook_points: tuple[HookPoint, ...] = ("resid_post",),
) -> Metadata:
    """Write a dataset and return its metadata.

    Args:
        folder: folder to write.
        shards: prompts of each shard.
        vectors_of: function that returns the vectors [n, hidden] float32 of a layer and a prompt,
            for every hook point.
        pooling: pooling of the vectors.
        storage_dtype: dtype of the stored elements.
        hidden: number of elements of a vector.
        layers: layer numbers.
        rejected: number of rejected tasks by reason.
        hook_points: hook points of each layer.
    """
    run = describe(pooling, storage_dtype, hidden, layers, hook_points)
    kind = RecordKind(pooling, storage_dtype, hidden)
    merges = {site: OrderedMerge() for site in run.sites}
    manifests: list[Manifest] = []
    (folder / "prompts").mkdir(parents=True)
    for shard, prompts in enumerate(shards):
        with open(folder / prompts_file(shard, len(shards)), "wb") as stream:
            manifests.append(write_prompts(stream, prompts, shard, len(shards)))
        for site in run.sites:
            path = folder / shard_file(site, shard, len(shards))
            path.parent.mkdir(exist_ok=True)
            rows = [vectors_of(place_of(site)[0], prompt) for prompt in prompts]
            vectors = stored(
                np.concatenate([np.empty((0, hidden), np.float32), *rows]), storage_dtype
            )
            with open(path, "wb") as stream:
                writer = LayerFileWriter(stream, site, kind)
                statistics = LayerStatistics.of_vectors(vectors)
                writer.append(frames_of(prompts, kind), vectors, statistics)
            manifest = writer.finish(shard, len(shards), "xla")
            manifests.append(manifest)
            merges[site].add(shard, manifest.statistics)
    metadata = Metadata(
        run=run,
        shards=shards_of(manifests, run.sites, len(shards)),
        counts=counts_of(itertools.chain(*shards), rejected),
        statistics={site: merge.result(len(shards)) for site, merge in merges.items()},
        ops=("xla",),
    )
    (folder / "metadata.json").write_text(metadata.to_json(), "utf-8")
    return metadata
