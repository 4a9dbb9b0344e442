"""Verifying a file of prompts: its every byte follows from the prompts that it holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from activation_dataset.checksum import extend, to_text
from activation_dataset.example import ExampleError
from activation_dataset.format import Pooling, Sample, prompts_file
from activation_dataset.manifest import FileEntry, PromptsManifest
from activation_dataset.prompts import (
    CELL_FIELDS,
    CELLS_BYTES,
    PAYLOAD,
    Prompt,
    decode_prompt,
    encode_prompt,
    spans_are_cells,
    write_prompts,
)
from activation_dataset.tfrecord import CorruptRecordError, scan_records
from activation_dataset.verifying.canonical import NotCanonicalError, parse_records, read_blocks
from activation_dataset.verifying.layer_file import LayerFileError, Problems
from activation_dataset.verifying.sample_table import SampleTable

_BLOCK_BYTES = 1 << 20


def verify_prompts(
    stream: BinaryIO, shard: int, num_shards: int
) -> tuple[PromptsManifest, SampleTable]:
    """Checks a file of prompts and returns the manifest that its writer returned, and its samples.

    Args:
        stream: seekable binary stream, read from its beginning.
        shard, num_shards: what the file is.

    Raises:
        LayerFileError: a record is corrupt, no prompt, or not as a writer would have written it;
            says all that is wrong.
        OSError: from the stream.
    """
    path = prompts_file(shard, num_shards)
    try:
        return _read_many(stream, shard, num_shards)
    except NotCanonicalError:
        prompts, problems = _read(stream, path)
    if problems:
        raise LayerFileError(path, problems)
    # Every record is canonical, so the file is what a writer makes of the prompts.
    with open(os.devnull, "wb") as nowhere:
        manifest = write_prompts(nowhere, prompts, shard, num_shards)
    if stream.seek(0, os.SEEK_END) != manifest.file.bytes:
        raise LayerFileError(path, ["changed while it was read"])
    return manifest, SampleTable.of([prompt.sample for prompt in prompts])


def check_prompts(stream: BinaryIO, file: str) -> list[str]:
    """All that is wrong with a file of prompts, which errors call `file`."""
    return _read(stream, file)[1]


def differences(prompts: SampleTable, layers: SampleTable, pooling: Pooling) -> list[str]:
    """Where a shard's prompts are not those of the samples of its layer files."""
    if prompts.kept(pooling) == layers:
        return []
    return _differences(prompts.samples(), layers.samples(), pooling)


def _differences(
    prompts: Sequence[Sample], samples: Sequence[Sample], pooling: Pooling
) -> list[str]:
    problems = Problems()
    for number, (prompt, sample) in enumerate(zip(prompts, samples, strict=False)):
        kept = prompt.token_ids[-1:] if pooling == "last" else prompt.token_ids
        if prompt.sample_id != sample.sample_id:
            problems.add(
                number, f"sample {prompt.sample_id!r}, the layers have {sample.sample_id!r}"
            )
        elif (prompt.task_id, prompt.num_tokens) != (sample.task_id, sample.num_tokens) or (
            not np.array_equal(kept, sample.token_ids)
        ):
            problems.add(number, f"sample {prompt.sample_id!r} is another in the layers")
    phrases = problems.phrases
    if len(prompts) != len(samples):
        phrases.append(f"{len(prompts)} prompts, the layers have {len(samples)} samples")
    return phrases


def _read_many(
    stream: BinaryIO, shard: int, num_shards: int
) -> tuple[PromptsManifest, SampleTable]:
    """As `verify_prompts`, many at a time, for a file that is as it must be.

    Raises:
        NotCanonicalError: it is not.
    """
    tables = []
    crc = size = 0
    stream.seek(0)
    for block in read_blocks(stream, _BLOCK_BYTES):
        records = parse_records(block, PAYLOAD, len(CELL_FIELDS), True, None)
        starts, ends = records.payload_starts, records.payload_ends
        tokens = records.samples.num_tokens
        if (ends - starts != tokens * CELLS_BYTES).any():
            raise NotCanonicalError("cells has another size than its shape")
        if not spans_are_cells(block.data, starts, ends):
            raise NotCanonicalError("cells has a row that is neither a cell nor -1 throughout")
        tables.append(records.samples)
        crc = extend(crc, block.data[: block.ends[-1]])
        size += int(block.ends[-1])
    samples = SampleTable.joined(tables)
    entry = FileEntry(prompts_file(shard, num_shards), size, to_text(crc))
    total = int(samples.num_tokens.sum())
    return PromptsManifest(shard, len(samples), total, entry), samples


def _read(stream: BinaryIO, file: str) -> tuple[list[Prompt], list[str]]:
    prompts: list[Prompt] = []
    problems = Problems()
    stream.seek(0)
    for number, record in enumerate(scan_records(stream, file)):
        try:
            if isinstance(record, CorruptRecordError):
                raise record
            prompt = decode_prompt(record)
            if encode_prompt(prompt) != record:
                raise ExampleError("not encoded as this version encodes it")
            prompts.append(prompt)
        except (CorruptRecordError, ExampleError) as error:
            problems.add(number, error)
    return prompts, problems.phrases
