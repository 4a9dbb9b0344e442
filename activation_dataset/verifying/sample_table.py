"""The samples of a shard as columns: what all files of the shard must agree on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import Pooling, Sample
from activation_dataset.protobuf import unpack_varints, varint_array


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Samples, in order.

    Attributes:
        sample_ids, task_ids: [n] texts.
        num_tokens: [n] int64, tokens of each prompt.
        tokens: [bytes] uint8, the `token_ids` of all samples as varints, end to end.
        token_ends: [n] int64, bytes of `tokens` up to and with each sample's.
    """

    sample_ids: list[str]
    task_ids: list[str]
    num_tokens: NDArray[np.int64]
    tokens: NDArray[np.uint8]
    token_ends: NDArray[np.int64]

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> SampleTable:
        samples = list(samples)
        packed = [varint_array(sample.token_ids) for sample in samples]
        return cls(
            [sample.sample_id for sample in samples],
            [sample.task_id for sample in samples],
            np.array([sample.num_tokens for sample in samples], np.int64),
            np.frombuffer(b"".join(packed), np.uint8),
            np.cumsum([len(each) for each in packed], dtype=np.int64),
        )

    @classmethod
    def joined(cls, tables: Iterable[SampleTable]) -> SampleTable:
        """The samples of several tables, one behind the other."""
        tables = [cls.of([]), *tables]
        offsets = np.cumsum([0, *(len(table.tokens) for table in tables)])
        return cls(
            [each for table in tables for each in table.sample_ids],
            [each for table in tables for each in table.task_ids],
            np.concatenate([table.num_tokens for table in tables]),
            np.concatenate([table.tokens for table in tables]),
            np.concatenate(
                [table.token_ends + offset for table, offset in zip(tables, offsets, strict=False)]
            ),
        )

    def __len__(self) -> int:
        return len(self.sample_ids)

    def samples(self) -> list[Sample]:
        """The samples one by one."""
        starts = np.concatenate([[0], self.token_ends])[:-1]
        return [
            Sample(
                sample_id,
                task_id,
                unpack_varints(self.tokens[start:end].data).astype(np.int32),
                num_tokens,
            )
            for sample_id, task_id, num_tokens, start, end in zip(
                self.sample_ids,
                self.task_ids,
                self.num_tokens.tolist(),
                starts.tolist(),
                self.token_ends.tolist(),
                strict=True,
            )
        ]

    def kept(self, pooling: Pooling) -> SampleTable:
        """As the layer files of a dataset of that pooling have the samples of whole prompts."""
        if pooling != "last":
            return self
        first = np.concatenate([[0], self.token_ends])[:-1]
        starts = np.maximum(self.token_ends - 1, first)
        # Every byte of a varint but its last has the highest bit.
        longer = np.flatnonzero(starts > first)
        while len(longer := longer[self.tokens[starts[longer] - 1] >= 0x80]):
            starts[longer] -= 1
            longer = longer[starts[longer] > first[longer]]
        lengths = self.token_ends - starts
        new_ends = np.cumsum(lengths)
        places = np.arange(int(lengths.sum()))
        places += np.repeat(starts - (new_ends - lengths), lengths)
        return SampleTable(
            self.sample_ids, self.task_ids, self.num_tokens, self.tokens[places], new_ends
        )

    def __eq__(self, other: object) -> bool:
        """Whether all samples are the same, in the same order."""
        if not isinstance(other, SampleTable):
            return NotImplemented
        return (
            self.sample_ids == other.sample_ids
            and self.task_ids == other.task_ids
            and np.array_equal(self.num_tokens, other.num_tokens)
            and np.array_equal(self.token_ends, other.token_ends)
            and np.array_equal(self.tokens, other.tokens)
        )
