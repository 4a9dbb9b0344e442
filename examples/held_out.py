"""Which vectors an autoencoder learns from, and which it is judged on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset import ActivationDataset
from activation_dataset.frontends.jax_devices import DeviceBatches
from activation_dataset.reading.vectors import Vectors
from activation_dataset.reporting.summary import OUTLIER_FACTORS
from activation_dataset.sites import Site

SHARE = 0.2
"""Share of the tasks that is held out."""

MOST = 1 << 16
"""Vectors that are held in memory at a time, about."""


@dataclass(frozen=True, eq=False)
class Split:
    """Whole tasks are held out, with all their variants: nothing learnt is like what is judged.

    Attributes:
        train, held_out: [n] int64, ascending numbers of vectors.
        tasks: ids of the tasks that are held out.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    tasks: tuple[str, ...]


def split(dataset: ActivationDataset, seed: int = 0) -> Split:
    """Holds out a fifth of the tasks.

    Raises:
        ValueError: there are not two tasks.
    """
    task_of = [dataset.task_id(sample) for sample in range(len(dataset))]
    tasks = sorted(set(task_of))
    if len(tasks) < 2:
        raise ValueError(f"{dataset.path} has the tasks {tasks}, expected at least two")
    count = max(1, round(SHARE * len(tasks)))
    chosen = sorted(np.random.default_rng(seed).permutation(tasks)[:count].tolist())
    shards = range(len(dataset.metadata.shards))
    vectors = np.concatenate([dataset.index(shard).vector_counts for shard in shards])
    held_out = np.repeat(np.isin(task_of, chosen), vectors)
    return Split(np.flatnonzero(~held_out), np.flatnonzero(held_out), tuple(chosen))


def training_batches(
    dataset: ActivationDataset, layer: Site, numbers: NDArray[np.int64], batch_size: int, seed: int
) -> Iterator[Any]:
    """Shuffled batches without end, jax.Arrays of [batch_size, hidden] float32.

    Raises:
        ValueError: there are too few vectors for a batch.
    """
    if len(numbers) < batch_size:
        raise ValueError(
            f"{len(numbers)} vectors to learn from make no batch of {batch_size}: make the dataset "
            "with --pooling none, or ask for a smaller --batch_size"
        )
    batches = DeviceBatches(
        dataset.batches(layer, batch_size, seed=seed, only=numbers, **_options(dataset, layer))
    )
    while True:
        yield from (batch.values for batch in batches)


def read(dataset: ActivationDataset, layer: Site, numbers: NDArray[np.int64]) -> Vectors:
    """The vectors of those numbers, in order; a run of them from the front if they are many."""
    numbers = numbers[:MOST]
    options = _options(dataset, layer)
    (batch,) = dataset.batches(layer, len(numbers), only=numbers, drop_last=False, **options)
    order = np.argsort(batch.numbers)
    return Vectors(batch.values[order], batch.numbers[order], dataset)


def _options(dataset: ActivationDataset, layer: Site) -> dict[str, Any]:
    """Scaled to a mean norm of sqrt(hidden); without the sinks, which would be all of the loss."""
    bound = OUTLIER_FACTORS[0] * dataset.metadata.statistics[layer].norm_histogram.median
    return {"normalise": "sae_lens", "norms": (0, bound)}
