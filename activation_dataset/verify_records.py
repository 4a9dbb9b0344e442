"""Checks of every record of a dataset against its prompts and its statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.example import ExampleError, decode_example
from activation_dataset.folder import Folder
from activation_dataset.format import METADATA_FILE, Sample
from activation_dataset.input_counts import Written
from activation_dataset.manifest import Shard
from activation_dataset.metadata import Metadata
from activation_dataset.prompts import Prompt, read_prompts
from activation_dataset.record import RecordKind
from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics, OrderedMerge
from activation_dataset.tfrecord import CorruptRecordError, read_records

# Size of the blocks of vectors whose statistics are computed at once.
_BLOCK_BYTES = 1 << 22

Finding = tuple[str, str]
"""File and its problem."""


@dataclass
class _ShardResult:
    findings: list[Finding] = field(default_factory=list)
    statistics: dict[Site, LayerStatistics] = field(default_factory=dict)
    sample_ids: list[str] = field(default_factory=list)
    written: Written | None = None


def check_records(
    folder: Folder, metadata: Metadata, damaged: AbstractSet[str], pool: Executor
) -> Iterator[Finding]:
    """Decode all records and compare them with the prompts and the statistics.

    The check skips the damaged files and the statistics of their sites.
    """
    merges = {site: OrderedMerge() for site in metadata.statistics}
    shard_of: dict[str, int] = {}
    written: list[Written | None] = []
    results = pool.map(
        lambda shard: _check_shard(folder, metadata, shard, damaged), metadata.shards
    )
    for number, result in enumerate(results):
        yield from result.findings
        written.append(result.written)
        for sample_id in result.sample_ids:
            if sample_id in shard_of:
                path = metadata.shards[number].prompts.path
                yield path, f"sample {sample_id!r} is also in shard {shard_of[sample_id]}"
            shard_of.setdefault(sample_id, number)
        for site, statistics in result.statistics.items():
            merges[site].add(number, statistics)
    yield from _check_counts(metadata, written)
    for site, expected in metadata.statistics.items():
        try:
            exact = merges[site].result(len(metadata.shards))
        except ValueError:  # Damaged files were skipped.
            continue
        for difference in expected.differences(exact):
            yield METADATA_FILE, f"statistics.{site}: {difference}"


def _check_counts(metadata: Metadata, shards: Sequence[Written | None]) -> Iterator[Finding]:
    known = [each for each in shards if each is not None]
    if len(known) < len(shards):
        return
    found = sum(known, Written())
    for name in ("truncated_samples", "truncated_tokens", "unknown_cell_samples"):
        said, counted = getattr(metadata.counts, name), getattr(found, name)
        if said != counted:
            yield METADATA_FILE, f"counts.{name} is {said}, but the prompts have {counted}"


def _check_shard(
    folder: Folder, metadata: Metadata, shard: Shard, damaged: AbstractSet[str]
) -> _ShardResult:
    result = _ShardResult()
    path = shard.prompts.path
    if path in damaged:
        return result
    try:
        with folder.open(path) as stream:
            prompts = list(read_prompts(stream, path))
    except (CorruptRecordError, OSError) as error:
        result.findings.append((path, _described(error)))
        return result
    found = len(prompts), sum(prompt.num_tokens for prompt in prompts)
    if found != (shard.samples, shard.tokens):
        what = f"has {found[0]} prompts with {found[1]} tokens, {METADATA_FILE} says"
        result.findings.append((path, f"{what} {shard.samples} with {shard.tokens}"))
    result.sample_ids = [prompt.sample_id for prompt in prompts]
    result.written = sum(map(Written.of, prompts), Written())
    for site, entry in shard.files.items():
        if entry.path in damaged:
            continue
        try:
            kind = metadata.run.record_kind(site)
            result.statistics[site] = _check_file(folder, entry.path, kind, prompts)
        except (CorruptRecordError, OSError) as error:
            result.findings.append((entry.path, _described(error)))
    return result


def _check_file(
    folder: Folder, path: str, kind: RecordKind, prompts: Sequence[Prompt]
) -> LayerStatistics:
    """Check the records of a layer file and return the statistics of its vectors.

    Raises:
        CorruptRecordError: if a record is damaged or does not fit its prompt.
    """
    remaining = iter(prompts)

    def vectors_of(data: memoryview) -> NDArray[Any]:
        example = decode_example(data)
        prompt = next(remaining, None)
        if prompt is None:
            raise ExampleError(f"the prompts have only {len(prompts)} records")
        _check_sample(example.sample, kind.sample(prompt))
        return kind.activation(example).reshape(-1, kind.row_elements)

    total = LayerStatistics.empty(kind.hidden)
    block: list[NDArray[Any]] = []
    count = block_bytes = 0
    with folder.open(path) as stream:
        for vectors in read_records(stream, path, vectors_of):
            count += 1
            block.append(vectors)
            block_bytes += vectors.nbytes
            if block_bytes > _BLOCK_BYTES:
                total = total.merge(LayerStatistics.of_vectors(np.concatenate(block)))
                block, block_bytes = [], 0
        if count < len(prompts):
            what = f"the file ends, but the prompts have {len(prompts)} records"
            raise CorruptRecordError(path, count, stream.tell(), what)
    if block:
        total = total.merge(LayerStatistics.of_vectors(np.concatenate(block)))
    return total


def _check_sample(found: Sample, expected: Sample) -> None:
    if found.sample_id != expected.sample_id:
        raise ExampleError(
            f"sample is {found.sample_id!r}, but the prompts have {expected.sample_id!r}"
        )
    for name in (each.name for each in fields(Sample)):
        if not np.array_equal(getattr(found, name), getattr(expected, name)):
            raise ExampleError(f"sample {found.sample_id!r}: {name} differs from the prompt")


def _described(error: CorruptRecordError | OSError) -> str:
    if isinstance(error, CorruptRecordError):
        return f"record {error.record} at byte {error.offset}: {error.detail}"
    return f"cannot be read: {error}"
