"""Datasets of any size, as the job writes them, with values like those of a residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from activation_dataset.format import (
    METADATA_FILE,
    Pooling,
    Sample,
    StorageDtype,
    prompts_file,
    shard_file,
    to_storage,
)
from activation_dataset.manifest import Manifest, shards_of
from activation_dataset.metadata import Metadata, RunDescription
from activation_dataset.prompts import Prompt, write_prompts
from activation_dataset.statistics import OrderedMerge
from activation_dataset.writer import LayerFileWriter


def residual_stream(vectors: int, hidden: int, seed: int) -> np.ndarray:
    """[vectors, hidden] float32: normal, but for a few dimensions that are massive or biased."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((vectors, hidden), np.float32)
    rows *= rng.uniform(0.2, 2, hidden).astype(np.float32)
    rows[:, 0] += np.float32(100)
    rows[:: vectors // 16 + 1, 1] = 3000
    return rows


def prompt_lengths(tokens: int, seed: int) -> list[int]:
    """Lengths that add up to `tokens`, spread as those of ARC tasks are: 72 to 3,420."""
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    while (left := tokens - sum(lengths)) > 0:
        lengths.append(min(left, int(np.exp(rng.uniform(np.log(72), np.log(3420))))))
    return lengths


def write_dataset(
    folder: Path,
    shards: Sequence[Sequence[int]],
    layers: Sequence[int],
    pooling: Pooling,
    storage_dtype: StorageDtype,
    hidden: int = 896,
) -> None:
    """Writes a dataset whose shards hold prompts of those lengths, the same values in each file."""
    most = max(sum(lengths) if pooling == "none" else len(lengths) for lengths in shards)
    rows = to_storage(residual_stream(most, hidden, 0), storage_dtype)
    merges = {layer: OrderedMerge() for layer in layers}
    manifests: list[Manifest] = []
    (folder / "prompts").mkdir(parents=True)
    for layer in layers:
        (folder / f"layer_{layer}").mkdir()
    for shard, lengths in enumerate(shards):
        prompts = _prompts(shard, lengths)
        with (folder / prompts_file(shard, len(shards))).open("wb") as stream:
            manifests.append(write_prompts(stream, prompts, shard, len(shards)))
        kept = -1 if pooling == "last" else 0
        samples = [
            Sample(p.sample_id, p.task_id, p.token_ids[kept:], p.num_tokens) for p in prompts
        ]
        counts = [p.num_tokens if pooling == "none" else 1 for p in prompts]
        for layer in layers:
            with (folder / shard_file(layer, shard, len(shards))).open("wb") as stream:
                writer = LayerFileWriter(stream, layer, pooling, storage_dtype, hidden)
                writer.append(samples, rows[: sum(counts)], counts)
            manifest = writer.finish(shard, len(shards))
            manifests.append(manifest)
            merges[layer].add(shard, manifest.file.statistics)
    metadata = Metadata(
        run=_run(layers, pooling, storage_dtype, hidden),
        shards=shards_of(manifests, tuple(layers), len(shards)),
        rejected={},
        statistics={layer: merge.result(len(shards)) for layer, merge in merges.items()},
    )
    (folder / METADATA_FILE).write_text(metadata.to_json(), "utf-8")


def _prompts(shard: int, lengths: Sequence[int]) -> list[Prompt]:
    rng = np.random.default_rng(shard)
    return [
        Prompt(
            sample_id=f"training.json#{shard:04x}{number:04x}/0",
            task_id=f"{shard:04x}{number:04x}",
            token_ids=rng.integers(0, 151_936, length, dtype=np.int32),
            cells=np.full((length, 4), -1, np.int16),
        )
        for number, length in enumerate(lengths)
    ]


def _run(
    layers: Sequence[int], pooling: Pooling, storage_dtype: StorageDtype, hidden: int
) -> RunDescription:
    return RunDescription(
        model_name="random values",
        layers_extracted=tuple(layers),
        hidden_dim=hidden,
        pooling=pooling,
        hook_points=("resid_post",),
        storage_dtype=storage_dtype,
        compute_dtype="bfloat16",
        prompt_template={"name": "none"},
        tokenizer={"fingerprint": "none"},
        weights={"fingerprint": "none", "source": "random"},
        inputs=(),
        settings={},
        versions={},
    )
