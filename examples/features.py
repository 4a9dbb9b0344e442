"""What the features of an autoencoder are active on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from activation_dataset.reading.vectors import Vectors
from activation_dataset.reporting.grid_figure import NO_COLOUR, colours_of

COLOURS = (
    "black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "light blue", "maroon",
)  # fmt: skip

# A feature that is active on more than this share of the tokens says little of any of them.
_COMMON = 0.1


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid with what a feature is on each of its cells.

    Attributes:
        sample_id: of the sample that it is in.
        cells: [n] places of its tokens among the vectors.
    """

    sample_id: str
    cells: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature.

    Attributes:
        number: of the feature.
        frequency: share of the vectors that it is active on.
        colour: whose cells have most of it, and their share of the sum of its activity.
        in_outputs: share of that sum that is in output grids.
        activity: [vectors] float32.
        grids: where it is most active, each of another task.
    """

    number: int
    frequency: float
    colour: tuple[str, float]
    in_outputs: float
    activity: NDArray[np.float32]
    grids: list[Grid]


def grid_features(
    vectors: Vectors, codes: NDArray[np.float32], count: int, grids: int = 3
) -> list[Feature]:
    """The rarer features that carry the most on cells of grids, the strongest first.

    Args:
        vectors: of whole prompts.
        codes: [vectors, features] float32.
    """
    cells = vectors.places.cells
    on_cell = cells[:, 1] >= 0
    frequencies = (codes > 0).mean(axis=0)
    carried = np.sum(codes[on_cell] ** 2, axis=0)
    carried[frequencies > _COMMON] = 0
    chosen = np.argsort(-carried, kind="stable")[:count]
    keys = np.column_stack([vectors.places.samples, cells[:, :2]])
    _, grid_of = np.unique(keys, axis=0, return_inverse=True)
    colours = np.where(on_cell, colours_of(vectors.places.token_ids), NO_COLOUR)
    found = []
    for number in chosen.tolist():
        activity = codes[:, number]
        total = float(activity.sum())
        if not carried[number]:
            break
        sums = np.bincount(colours, activity, NO_COLOUR + 1)[:NO_COLOUR]
        most = int(sums.argmax())
        found.append(
            Feature(
                number=number,
                frequency=float(frequencies[number]),
                colour=(COLOURS[most], float(sums[most]) / total),
                in_outputs=float(activity[cells[:, 1] == 1].sum()) / total,
                activity=activity,
                grids=list(_strongest(vectors, np.where(on_cell, activity, 0), grid_of, grids)),
            )
        )
    return found


def _strongest(
    vectors: Vectors, activity: NDArray[np.float32], grid_of: NDArray[np.int64], count: int
) -> Iterator[Grid]:
    """The grids with the most active cells, of as many tasks."""
    seen: set[str] = set()
    for place in np.argsort(-activity, kind="stable").tolist():
        if activity[place] <= 0 or len(seen) == count:
            return
        sample = int(vectors.places.samples[place])
        if (task := vectors.dataset.task_id(sample)) not in seen:
            seen.add(task)
            cells = np.flatnonzero(grid_of == grid_of[place])
            yield Grid(vectors.dataset.sample_id(sample), cells)
