"""Vectors of a dataset together with what is known of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.prompts import CELL_FIELDS, NO_CELL

if TYPE_CHECKING:
    from activation_dataset.index import ShardIndex
    from activation_dataset.reading.reader import ActivationDataset

NO_TOKEN = -1
"""Stands for position and token of a vector that is the mean over a prompt."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where vectors come from.

    Attributes:
        samples: [n] int64, numbers of the samples.
        positions: [n] int64, places of the tokens in their prompts, or NO_TOKEN.
        token_ids: [n] int32, the tokens, or NO_TOKEN.
        cells: [n, 4] int16, the cells of grids that the tokens show, as in Prompt.
    """

    samples: NDArray[np.int64]
    positions: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    cells: NDArray[np.int16]

    @classmethod
    def empty(cls, count: int) -> Places:
        """To be filled: no tokens as yet."""
        return cls(
            np.empty(count, np.int64),
            np.full(count, NO_TOKEN, np.int64),
            np.full(count, NO_TOKEN, np.int32),
            np.full((count, len(CELL_FIELDS)), NO_CELL, np.int16),
        )

    def put(self, where: NDArray[Any], index: ShardIndex, numbers: NDArray[np.int64]) -> None:
        """Fills in the vectors of one shard.

        Args:
            where: [n] where they stand among these.
            index: the shard's.
            numbers: [n] int64, their numbers in the shard.
        """
        samples = np.searchsorted(index.vector_ends, numbers, side="right")
        self.samples[where] = samples
        if index.pooling == "mean":
            return
        tokens = index.token_ends[samples] - 1 if index.pooling == "last" else numbers
        starts = index.token_ends[samples] - index.token_counts[samples]
        self.positions[where] = tokens - starts
        self.token_ids[where] = index.token_ids[tokens]
        self.cells[where] = index.cells[tokens]


@dataclass(frozen=True, eq=False)
class Vectors:
    """Some vectors of one or more layers, and where each comes from.

    A vector's number is its place in the order of the files, the same in every layer.

    Attributes:
        values: [n, hidden], or [n, layers, hidden] if layers were asked for as a sequence; float32
            unless another dtype was asked for.
        numbers: [n] int64, the vectors' numbers.
        dataset: which they are of.
    """

    values: NDArray[Any]
    numbers: NDArray[np.int64]
    dataset: ActivationDataset = field(repr=False)

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def places(self) -> Places:
        """Samples, positions, tokens and cells of the vectors, looked up when first asked for."""
        return self.dataset.locate(self.numbers)

    @property
    def sample_ids(self) -> list[str]:
        """[n] ids of the samples."""
        return [self.dataset.sample_id(sample) for sample in self.places.samples.tolist()]
