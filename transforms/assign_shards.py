"""Assignment of prompts to shards by the rank of a hash of their keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
import numpy as np

from activation_dataset.prompts import Prompt
from transforms.auto_shards import AutoShards
from transforms.shuffle_encoding import decode_prompt, encode_prompt

FINGERPRINT = np.dtype([("rank", "<u8"), ("content", "<u8"), ("tokens", "<u4"), ("bytes", "<u4")])
"""Fingerprint of a prompt for planning: 24 bytes, so that ten million fit in a worker.

`bytes` is the size of the prompt's largest record, at most 4 GiB, or 0 if the plan ignores it."""

_DIGESTED = np.dtype([("rank", "<u8"), ("content", "<u8"), ("tokens", "<u8")])
"""The fields that the digest of a plan covers."""


@dataclass(frozen=True)
class ShardPlan:
    """The assignment of samples to shards.

    Attributes:
        num_shards: number of shards of the dataset.
        samples: number of samples.
        tokens: number of tokens.
        digest: SHA-256 (hex) over the key, the token ids and the chosen tokens of every sample, in
            rank order. Equal digests mean the same samples in the same shards.
        first_ranks: [num_shards] uint64, rank of each shard's first sample, ascending.
    """

    num_shards: int
    samples: int
    tokens: int
    digest: str
    first_ranks: np.ndarray

    def shard_of(self, sample_id: str) -> int:
        """Return the shard of a sample."""
        return int(np.searchsorted(self.first_ranks, rank(sample_id), side="right")) - 1


def rank(sample_id: str) -> np.uint64:
    """Return the rank of a sample, which orders all samples: 64 bits of BLAKE2b of its key."""
    return _hash(sample_id.encode())


def _hash(content: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big"))


def fingerprint(prompt: Prompt, samples_per_shard: int | AutoShards = 1) -> np.ndarray:
    """Return the fingerprint of a prompt, [1] FINGERPRINT, for a choice of shards."""
    name = f"{prompt.sample_id}\0{prompt.truncated_tokens or ''}"
    content = name.encode() + prompt.token_ids.astype("<i4").tobytes()
    if prompt.positions is not None:
        content += b"\0positions" + prompt.positions.astype("<i4").tobytes()
    if prompt.prepended_bos or prompt.offset:
        content += f"\0{prompt.prepended_bos:d}@{prompt.offset}".encode()
    largest = 0
    if isinstance(samples_per_shard, AutoShards):
        largest = min(samples_per_shard.largest_record(prompt), 2**32 - 1)
    values = (rank(prompt.sample_id), _hash(content), len(prompt.token_ids), largest)
    return np.array([values], FINGERPRINT)


def plan_shards(fingerprints: np.ndarray, samples_per_shard: int | AutoShards) -> ShardPlan:
    """Cut samples, [samples] FINGERPRINT in any order, into shards.

    With a number, every shard but the last has that many samples. With `AutoShards`, all shards
    have about the same number.
    """
    ordered = np.sort(fingerprints, order=["rank", "content"])
    tokens = int(ordered["tokens"].sum(dtype=np.int64))
    if isinstance(samples_per_shard, AutoShards):
        first_ranks = ordered["rank"][samples_per_shard.starts(tokens, ordered["bytes"])]
    else:
        first_ranks = ordered["rank"][::samples_per_shard].copy()
    digested = ordered[["rank", "content", "tokens"]].astype(_DIGESTED)
    return ShardPlan(
        num_shards=len(first_ranks),
        samples=len(ordered),
        tokens=tokens,
        digest=hashlib.sha256(digested.data).hexdigest(),
        first_ranks=first_ranks,
    )


class PlanShards(beam.CombineFn):
    """Combine all prompts into a `ShardPlan`."""

    def __init__(self, samples_per_shard: int | AutoShards) -> None:
        self._samples_per_shard = samples_per_shard

    def create_accumulator(self) -> bytearray:
        return bytearray()

    def add_input(self, accumulator: bytearray, prompt: Prompt) -> bytearray:
        accumulator += fingerprint(prompt, self._samples_per_shard).tobytes()
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[bytearray]) -> bytearray:
        return bytearray().join(accumulators)

    def extract_output(self, accumulator: bytearray) -> ShardPlan:
        return plan_shards(np.frombuffer(accumulator, FINGERPRINT), self._samples_per_shard)


@dataclass(eq=False)
class AssignShards(beam.PTransform):
    """Group prompts into (shard, prompts) by a singleton PCollection of the `ShardPlan`.

    The shuffle carries only encoded token ids.
    """

    plan: beam.PCollection

    def expand(self, prompts: beam.PCollection) -> beam.PCollection:
        return (
            prompts
            # Encode first, because all prompts wait for the plan.
            | "Encode" >> beam.Map(lambda prompt: (prompt.sample_id, encode_prompt(prompt)))
            | "Number"
            >> beam.Map(
                lambda named, plan: (plan.shard_of(named[0]), named[1]),
                plan=beam.pvalue.AsSingleton(self.plan),
            )
            | "Gather" >> beam.GroupByKey()
            | "Decode"
            >> beam.MapTuple(lambda shard, encoded: (shard, [*map(decode_prompt, encoded)]))
        )
