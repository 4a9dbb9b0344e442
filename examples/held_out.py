"""Split of a dataset into vectors to train on and vectors to evaluate on, and how to read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset import ActivationDataset
from activation_dataset.frontends import DeviceBatches
from activation_dataset.reading.vectors import Vectors
from activation_dataset.reporting.summary import OUTLIER_FACTORS
from activation_dataset.sites import Site
from examples.puzzles import puzzles

SHARE = 0.2
"""Share of the tasks that is held out."""

MOST = 1 << 16
"""Largest number of vectors that `read` returns."""


@dataclass(frozen=True, eq=False)
class Split:
    """Whole puzzles are held out with all their variants, also if they come from several files, so
    that no held-out vector is like one of the training vectors.

    Attributes:
        train, held_out: [n] int64, ascending numbers of vectors.
        tasks: names of the held-out puzzles and documents, see `puzzles`.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    tasks: tuple[str, ...]


def split(dataset: ActivationDataset, seed: int = 0) -> Split:
    """Hold out a fifth of the tasks.

    Raises:
        ValueError: the dataset has fewer than two puzzles or documents.
    """
    puzzle_of = puzzles(dataset)
    tasks = sorted(set(puzzle_of))
    if len(tasks) < 2:
        raise ValueError(
            f"{dataset.path} has {len(puzzle_of)} samples, but all are of {tasks} or have content "
            "in common with it: there is nothing to hold out, expected at least two puzzles"
        )
    count = max(1, round(SHARE * len(tasks)))
    chosen = sorted(np.random.default_rng(seed).permutation(tasks)[:count].tolist())
    vectors = np.concatenate([np.diff(layout.vector_starts) for layout in dataset.layouts()])
    held_out = np.repeat(np.isin(puzzle_of, chosen), vectors)
    return Split(np.flatnonzero(~held_out), np.flatnonzero(held_out), tuple(chosen))


def training_batches(
    dataset: ActivationDataset, site: Site, numbers: NDArray[np.int64], batch_size: int, seed: int
) -> Iterator[Any]:
    """Yield shuffled batches without end, jax.Arrays [batch_size, hidden] float32.

    Raises:
        ValueError: there are fewer vectors than a batch.
    """
    if len(numbers) < batch_size:
        raise ValueError(
            f"{len(numbers)} training vectors are fewer than a batch of {batch_size}: make the "
            "dataset with --pooling none, or use a smaller --batch_size"
        )
    options = _options(dataset, site)
    batches = DeviceBatches(dataset.batches(site, batch_size, seed=seed, only=numbers, **options))
    while True:
        yield from (batch.values for batch in batches)


def read(dataset: ActivationDataset, site: Site, numbers: NDArray[np.int64]) -> Vectors:
    """Return the vectors with these numbers in order; the first MOST of them if there are more."""
    numbers = numbers[:MOST]
    options = _options(dataset, site)
    (batch,) = dataset.batches(site, len(numbers), only=numbers, drop_last=False, **options)
    order = np.argsort(batch.numbers)
    return Vectors(batch.values[order], batch.numbers[order], dataset)


def _options(dataset: ActivationDataset, site: Site) -> dict[str, Any]:
    """Scale to a mean norm of sqrt(hidden), without the sinks, which would dominate the loss."""
    bound = OUTLIER_FACTORS[0] * dataset.metadata.statistics[site].norm_histogram.median
    return {"normalize": "sae_lens", "norms": (0, bound)}
