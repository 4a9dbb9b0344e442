"""Synthetic datasets of any size in the job's format, with values like a residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import METADATA_FILE, Pooling, prompts_file, shard_file
from activation_dataset.input_counts import InputCounts, Written
from activation_dataset.manifest import Manifest, shards_of
from activation_dataset.metadata import Metadata, RunDescription
from activation_dataset.prompts import Prompt, write_prompts
from activation_dataset.record import RecordKind, frame_record
from activation_dataset.statistics import LayerStatistics, OrderedMerge
from activation_dataset.storage_dtype import StorageDtype
from activation_dataset.writer import LayerFileWriter


def residual_stream(vectors: int, hidden: int, seed: int) -> NDArray[np.float32]:
    """Return [vectors, hidden] float32, normal except for a few massive or biased dimensions."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((vectors, hidden), np.float32)
    rows *= rng.uniform(0.2, 2, hidden).astype(np.float32)
    rows[:, 0] += np.float32(100)
    rows[:: vectors // 16 + 1, 1] = 3000
    return rows


def prompt_lengths(tokens: int, seed: int) -> list[int]:
    """Return lengths of 72 to 3,420 tokens, as in ARC tasks, that add up to `tokens`."""
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    while (left := tokens - sum(lengths)) > 0:
        lengths.append(min(left, int(np.exp(rng.uniform(np.log(72), np.log(3420))))))
    return lengths


def in_storage(rows: NDArray[np.float32], storage_dtype: StorageDtype) -> NDArray[Any]:
    """Return rows in the storage dtype; bfloat16 as uint16 bits."""
    return rows if storage_dtype == "float32" else rows.astype(ml_dtypes.bfloat16).view(np.uint16)


def write_dataset(
    folder: Path,
    shards: Sequence[Sequence[int]],
    layers: Sequence[int],
    pooling: Pooling,
    storage_dtype: StorageDtype,
    hidden: int = 896,
) -> None:
    """Write a dataset whose files have the same values.

    Args:
        folder: new or empty folder.
        shards: prompt lengths of each shard.
        layers: layers with files.
        pooling: pooling of the records.
        storage_dtype: dtype of the stored vectors.
        hidden: hidden size.
    """
    kind = RecordKind(pooling, storage_dtype, hidden)
    counts = [sum(lengths) if pooling == "none" else len(lengths) for lengths in shards]
    most = max(counts)
    rows = in_storage(residual_stream(most, hidden, 0), storage_dtype)
    merges = {layer: OrderedMerge() for layer in layers}
    manifests: list[Manifest] = []
    (folder / "prompts").mkdir(parents=True)
    for layer in layers:
        (folder / f"layer_{layer}").mkdir()
    for shard, lengths in enumerate(shards):
        prompts = _prompts(shard, lengths)
        with (folder / prompts_file(shard, len(shards))).open("wb") as stream:
            manifests.append(write_prompts(stream, prompts, shard, len(shards)))
        frames = [frame_record(kind.sample(prompt), kind) for prompt in prompts]
        vectors = rows[: counts[shard]]
        statistics = LayerStatistics.of_vectors(vectors)
        for layer in layers:
            with (folder / shard_file(layer, shard, len(shards))).open("wb") as stream:
                writer = LayerFileWriter(stream, layer, kind)
                writer.append(frames, vectors, statistics)
            manifest = writer.finish(shard, len(shards), "xla")
            manifests.append(manifest)
            merges[layer].add(shard, manifest.statistics)
    samples = sum(map(len, shards))
    metadata = Metadata(
        run=_run(layers, pooling, storage_dtype, hidden),
        shards=shards_of(manifests, tuple(layers), len(shards)),
        counts=InputCounts.of(Written(samples, samples), []),
        statistics={layer: merge.result(len(shards)) for layer, merge in merges.items()},
        ops=("xla",),
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
        model={"hidden_size": hidden},
        tokenizer={"fingerprint": "none"},
        weights={"fingerprint": "none", "source": "random"},
        inputs=(),
        settings={},
        versions={},
    )
