"""Prompts to shards, by rank of a hash of their keys: the data alone decides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
import numpy as np

from activation_dataset.prompts import Prompt
from transforms.packing import pack_prompt, unpack_prompt

FINGERPRINT = np.dtype([("rank", "<u8"), ("content", "<u8"), ("tokens", "<u8")])
"""What planning needs of a prompt: 24 bytes, so that ten million fit in a worker."""


@dataclass(frozen=True)
class ShardPlan:
    """Which sample belongs to which shard.

    Attributes:
      num_shards: at least 1 where there are samples.
      samples, tokens: in all.
      digest: SHA-256 (hex) over every sample's key and token ids, in rank order: equal digests
        mean the same samples in the same shards.
      first_ranks: [num_shards] uint64, the rank hash of each shard's first sample, ascending.
    """

    num_shards: int
    samples: int
    tokens: int
    digest: str
    first_ranks: np.ndarray

    def shard_of(self, sample_id: str) -> int:
        return int(np.searchsorted(self.first_ranks, rank(sample_id), side="right")) - 1


def rank(sample_id: str) -> np.uint64:
    """A sample's place among all others, before counting: 64 bits of BLAKE2b of its key."""
    return _hash(sample_id.encode())


def _hash(content: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big"))


def fingerprint(prompt: Prompt) -> np.ndarray:
    """[1] FINGERPRINT"""
    content = prompt.sample_id.encode() + b"\0" + prompt.token_ids.astype("<i4").tobytes()
    values = (rank(prompt.sample_id), _hash(content), len(prompt.token_ids))
    return np.array([values], FINGERPRINT)


def plan_shards(fingerprints: np.ndarray, samples_per_shard: int) -> ShardPlan:
    """Cuts the samples, in rank order, into shards of exactly that many; the last may have fewer.

    Args:
      fingerprints: [samples] FINGERPRINT in any order.
    """
    ordered = np.sort(fingerprints, order=["rank", "content"])
    first_ranks = ordered["rank"][::samples_per_shard].copy()
    return ShardPlan(
        num_shards=len(first_ranks),
        samples=len(ordered),
        tokens=int(ordered["tokens"].sum()),
        digest=hashlib.sha256(ordered.tobytes()).hexdigest(),
        first_ranks=first_ranks,
    )


class PlanShards(beam.CombineFn):
    """Combines all prompts to a ``ShardPlan``."""

    def __init__(self, samples_per_shard: int) -> None:
        self._samples_per_shard = samples_per_shard

    def create_accumulator(self) -> bytearray:
        return bytearray()

    def add_input(self, accumulator: bytearray, prompt: Prompt) -> bytearray:
        accumulator += fingerprint(prompt).tobytes()
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[bytearray]) -> bytearray:
        return bytearray().join(accumulators)

    def extract_output(self, accumulator: bytearray) -> ShardPlan:
        return plan_shards(np.frombuffer(accumulator, FINGERPRINT), self._samples_per_shard)


@dataclass(eq=False)
class AssignShards(beam.PTransform):
    """Prompts to (shard, prompts of the shard). Only token ids are shuffled, packed.

    Attributes:
      plan: a singleton PCollection of the ``ShardPlan``.
    """

    plan: beam.PCollection

    def expand(self, prompts: beam.PCollection) -> beam.PCollection:
        return (
            prompts
            # At once, since all of them wait for the plan.
            | "Pack" >> beam.Map(lambda prompt: (prompt.sample_id, pack_prompt(prompt)))
            | "Number"
            >> beam.Map(
                lambda named, plan: (plan.shard_of(named[0]), named[1]),
                plan=beam.pvalue.AsSingleton(self.plan),
            )
            | "Gather" >> beam.GroupByKey()
            | "Unpack"
            >> beam.MapTuple(
                lambda shard, packed: (shard, [unpack_prompt(each) for each in packed])
            )
        )
