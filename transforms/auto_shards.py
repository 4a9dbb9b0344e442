"""Equal shards for `--samples_per_shard auto`, enough to keep all workers busy.

A worker takes one shard after another. With R shards for each worker, the last round takes about
1/R of the run, and other workers may be idle in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from activation_dataset.prompts import Prompt
from activation_dataset.record import RecordKind
from transforms.measure_output import record_bytes

MOST_OF_A_WORKER = 20
"""Shards of each worker in a long run, whose tail is then about 5 % of the run."""

FEWEST_OF_A_WORKER = 8
"""Shards of each worker in a short run."""

LEAST_TOKENS = 2**18
"""Tokens of a shard that justify the requests for its files and the padding of its last step: about
two seconds of a 0.5B model on one chip of a TPU v5e."""

LARGEST_FILE = 2**30
"""Largest size of a file in bytes, unless a single sample exceeds it."""

MEAN_FILE = LARGEST_FILE * 3 // 4
"""Largest mean size of the files of a shard in bytes, so that few shards exceed the limit."""


@dataclass(frozen=True)
class AutoShards:
    """Choice of shards for a number of workers. `kinds` holds each kind of record once."""

    workers: int
    kinds: tuple[RecordKind, ...]

    def largest_record(self, prompt: Prompt) -> int:
        """Return the bytes of the largest record of a sample, including its prompt's record."""
        return max(record_bytes(prompt, kind) for kind in (*self.kinds, None))

    def starts(self, tokens: int, largest_records: np.ndarray) -> np.ndarray:
        """Return the first sample of each shard, [shards] int64 ascending.

        The numbers of samples of shards differ by at most one. Shards over `LARGEST_FILE` are then
        halved, because the limit matters more than the tail.

        Args:
            tokens: tokens of all samples.
            largest_records: [samples] bytes of the largest record of each sample, in rank order.
        """
        sizes = np.concatenate([[0], np.cumsum(largest_records, dtype=np.int64)])
        shards = number_of_shards(len(largest_records), tokens, int(sizes[-1]), self.workers)
        even = np.arange(shards, dtype=np.int64) * len(largest_records) // max(shards, 1)
        return _halved(even, sizes)


def number_of_shards(samples: int, tokens: int, largest_bytes: int, workers: int) -> int:
    """Return a number of shards that all workers can share equally, but at most `samples`.

    Args:
        samples: samples of the dataset.
        tokens: tokens of the dataset.
        largest_bytes: bytes of the largest files of all shards together.
        workers: workers that share the shards.
    """
    of_a_worker = tokens // (LEAST_TOKENS * workers)
    of_a_worker = min(max(of_a_worker, FEWEST_OF_A_WORKER), MOST_OF_A_WORKER)
    for_the_limit = -(-largest_bytes // (MEAN_FILE * workers))
    return min(max(of_a_worker, for_the_limit) * workers, samples)


def _halved(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Halve shards until each has at most `LARGEST_FILE` or one sample.

    Args:
        starts: [shards] first sample of each shard.
        sizes: [samples + 1] total bytes of the samples before each one.
    """
    bounds = [*starts.tolist(), len(sizes) - 1]
    waiting = [*pairwise(bounds)][::-1]
    found = []
    while waiting:
        start, end = waiting.pop()
        if end - start > 1 and sizes[end] - sizes[start] > LARGEST_FILE:
            middle = (start + end) // 2
            waiting += [(middle, end), (start, middle)]
        else:
            found.append(start)
    return np.array(found, np.int64)
