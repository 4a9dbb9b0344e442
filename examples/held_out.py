"""Split of a dataset into training vectors and held-out vectors."""

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
"""Share of held-out tasks."""

MOST = 1 << 16
"""Maximum number of vectors that `read` returns."""


@dataclass(frozen=True, eq=False)
class Split:
    """Split of the vectors of a dataset.

    Whole puzzles are held out with all their variants, even if the variants come from several
    files, so no held-out vector resembles a training vector.

    Attributes:
        train: [n] int64, ascending numbers of the training vectors.
        held_out: [n] int64, ascending numbers of the held-out vectors.
        tasks: names of the held-out puzzles and documents, see `puzzles`.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    tasks: tuple[str, ...]


def split(dataset: ActivationDataset, seed: int = 0) -> Split:
    """Hold out a fifth of the tasks.

    Raises:
        ValueError: if the dataset has fewer than two puzzles or documents.
    """
    puzzle_of = puzzles(dataset)
    tasks = sorted(set(puzzle_of))
    if len(tasks) < 2:
        raise ValueError(
            f"{dataset.path}: the {len(puzzle_of)} samples form {len(tasks)} puzzles {tasks}, "
            "expected at least two puzzles: add tasks to the dataset"
        )
    count = max(1, round(SHARE * len(tasks)))
    chosen = sorted(np.random.default_rng(seed).permutation(tasks)[:count].tolist())
    vectors = np.concatenate([np.diff(layout.vector_starts) for layout in dataset.layouts()])
    held_out = np.repeat(np.isin(puzzle_of, chosen), vectors)
    return Split(np.flatnonzero(~held_out), np.flatnonzero(held_out), tuple(chosen))


def training_batches(
    dataset: ActivationDataset, site: Site, numbers: NDArray[np.int64], batch_size: int, seed: int
) -> Iterator[Any]:
    """Yield shuffled batches without end, each a jax.Array [batch_size, hidden] float32.

    Raises:
        ValueError: if there are fewer vectors than `batch_size`.
    """
    if len(numbers) < batch_size:
        raise ValueError(
            f"{dataset.path}: {len(numbers)} training vectors are fewer than a batch of "
            f"{batch_size}: make the dataset with --pooling none, or use a smaller --batch_size"
        )
    options = _options(dataset, site)
    batches = DeviceBatches(dataset.batches(site, batch_size, seed=seed, only=numbers, **options))
    while True:
        yield from (batch.values for batch in batches)


def read(dataset: ActivationDataset, site: Site, numbers: NDArray[np.int64]) -> Vectors:
    """Return the vectors with the given numbers in order, at most the first `MOST`."""
    numbers = numbers[:MOST]
    options = _options(dataset, site)
    (batch,) = dataset.batches(site, len(numbers), only=numbers, drop_last=False, **options)
    order = np.argsort(batch.numbers)
    return Vectors(batch.values[order], batch.numbers[order], dataset)


def _options(dataset: ActivationDataset, site: Site) -> dict[str, Any]:
    """Return options that scale to a mean norm of sqrt(hidden) and leave out attention sinks.

    The large norms of the sinks would dominate the loss.
    """
    bound = OUTLIER_FACTORS[0] * dataset.metadata.statistics[site].norm_histogram.median
    return {"normalize": "sae_lens", "norms": (0, bound)}
