"""The index of a shard: where its records lie, and its prompts as columns.

All of it follows from the prompts, so it is made without reading an activation and serves every
layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import Pooling, Sample
from activation_dataset.prompts import CELL_FIELDS, Prompt
from activation_dataset.record import RecordKind, frame_record
from activation_dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, frame_header


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """A shard's records and prompts, in the order of its files.

    Attributes:
        pooling: as in the metadata.
        record_starts: [samples + 1] int64: where each record starts in a layer file, and its size.
        activation_starts: [samples] int64: where each record's activation starts.
        token_ends: [samples] int64: tokens of all prompts up to and with each.
        token_ids: [tokens] int32, of all prompts end to end.
        cells: [tokens, 4] int16, as in Prompt.
        sample_id_ends, task_id_ends: [samples] int64: as token_ends, of the bytes below.
        sample_ids, task_ids: [bytes] uint8: UTF-8, end to end.
    """

    pooling: Pooling
    record_starts: NDArray[np.int64]
    activation_starts: NDArray[np.int64]
    token_ends: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    cells: NDArray[np.int16]
    sample_id_ends: NDArray[np.int64]
    task_id_ends: NDArray[np.int64]
    sample_ids: NDArray[np.uint8]
    task_ids: NDArray[np.uint8]

    def __len__(self) -> int:
        """Samples."""
        return len(self.token_ends)

    @property
    def pooled(self) -> bool:
        """Whether a sample has one vector, and not one for each token."""
        return self.pooling != "none"

    @cached_property
    def token_counts(self) -> NDArray[np.int64]:
        """[samples] int64: tokens of each prompt."""
        return np.diff(self.token_ends, prepend=0)

    @cached_property
    def vector_ends(self) -> NDArray[np.int64]:
        """[samples] int64: vectors of all samples up to and with each."""
        return np.arange(1, len(self) + 1, dtype=np.int64) if self.pooled else self.token_ends

    @cached_property
    def vector_counts(self) -> NDArray[np.int64]:
        """[samples] int64: vectors of each sample."""
        return np.diff(self.vector_ends, prepend=0)

    @cached_property
    def headers(self) -> NDArray[np.uint8]:
        """[samples, 12] uint8: the TFRecord header of each record."""
        lengths = np.diff(self.record_starts) - HEADER_BYTES - FOOTER_BYTES
        distinct, which = np.unique(lengths, return_inverse=True)
        headers = b"".join(frame_header(length) for length in distinct.tolist())
        return np.frombuffer(headers, np.uint8).reshape(-1, HEADER_BYTES)[which]

    def sample_id(self, sample: int) -> str:
        """The id of a sample, by its number in the shard."""
        return _text(self.sample_ids, self.sample_id_ends, sample)

    def task_id(self, sample: int) -> str:
        """The id of a sample's task, by the sample's number in the shard."""
        return _text(self.task_ids, self.task_id_ends, sample)


def build_index(prompts: Iterable[Prompt], kind: RecordKind) -> ShardIndex:
    """The index of a shard with those prompts, whose layer files hold records of that kind."""
    record_starts, activation_starts, token_ends = [0], [], []
    token_ids = [np.empty(0, np.int32)]
    cells = [np.empty((0, len(CELL_FIELDS)), np.int16)]
    sample_ids, task_ids = [], []
    tokens = 0
    for prompt in prompts:
        frame = frame_record(_sample(prompt, kind.pooling), kind)
        activation_starts.append(record_starts[-1] + len(frame.head))
        record_starts.append(record_starts[-1] + frame.size)
        tokens += prompt.num_tokens
        token_ends.append(tokens)
        token_ids.append(prompt.token_ids)
        cells.append(prompt.cells)
        sample_ids.append(prompt.sample_id.encode("utf-8"))
        task_ids.append(prompt.task_id.encode("utf-8"))
    return ShardIndex(
        pooling=kind.pooling,
        record_starts=np.array(record_starts, np.int64),
        activation_starts=np.array(activation_starts, np.int64),
        token_ends=np.array(token_ends, np.int64),
        token_ids=np.concatenate(token_ids),
        cells=np.concatenate(cells),
        sample_id_ends=np.cumsum([len(each) for each in sample_ids], dtype=np.int64),
        task_id_ends=np.cumsum([len(each) for each in task_ids], dtype=np.int64),
        sample_ids=np.frombuffer(b"".join(sample_ids), np.uint8),
        task_ids=np.frombuffer(b"".join(task_ids), np.uint8),
    )


def _sample(prompt: Prompt, pooling: Pooling) -> Sample:
    """The sample as the records of a layer file have it."""
    kept = prompt.token_ids[-1:] if pooling == "last" else prompt.token_ids
    return Sample(prompt.sample_id, prompt.task_id, kept, prompt.num_tokens)


def _text(data: NDArray[np.uint8], ends: NDArray[np.int64], number: int) -> str:
    start = int(ends[number - 1]) if number else 0
    return data[start : int(ends[number])].tobytes().decode("utf-8")
