"""Features of an autoencoder, and the grids where they are most active."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from activation_dataset.reading.vectors import Vectors
from activation_dataset.reporting.grid_figure import NO_COLOR, colors_of

COLORS = (
    "black", "blue", "red", "green", "yellow", "gray", "magenta", "orange", "light blue", "maroon",
)  # fmt: skip

# A feature that is active on a larger share of the tokens is not specific.
_COMMON = 0.1


@dataclass(frozen=True, eq=False)
class Feature:
    """Activity of a feature on the cells of grids.

    Attributes:
        number: number of the feature.
        frequency: share of the vectors on which the feature is active.
        color: cell color with the largest share of the activity, and that share.
        in_outputs: share of the activity in output grids.
        activity: [vectors] float32, activity on each vector.
        grids: grids where the feature is most active, each from a different task: for each grid,
            the positions of its tokens among the vectors, [n] int64.
    """

    number: int
    frequency: float
    color: tuple[str, float]
    in_outputs: float
    activity: NDArray[np.float32]
    grids: list[NDArray[np.int64]]


def grid_features(
    vectors: Vectors, codes: NDArray[np.float32], count: int, grids: int = 3
) -> list[Feature]:
    """Return the rare features with the most activity on grid cells, most active first.

    Args:
        vectors: vectors of whole prompts.
        codes: [vectors, features] float32.
        count: maximum number of features.
        grids: maximum number of grids for each feature.
    """
    cells, run = vectors.places.cells, vectors.dataset.metadata.run
    on_cell = cells[:, 1] >= 0
    frequencies = (codes > 0).mean(axis=0)
    energy = np.sum(codes[on_cell] ** 2, axis=0)
    energy[frequencies > _COMMON] = 0
    keys = np.column_stack([vectors.places.samples, cells[:, :2]])
    _, grid_of = np.unique(keys, axis=0, return_inverse=True)
    colors = np.where(on_cell, colors_of(vectors.places.token_ids, run), NO_COLOR)
    found = []
    for number in np.argsort(-energy, kind="stable")[:count].tolist():
        if not energy[number]:
            break
        activity = codes[:, number]
        total = float(activity.sum())
        sums = np.bincount(colors, activity, NO_COLOR + 1)[:NO_COLOR]
        most = int(sums.argmax())
        found.append(
            Feature(
                number=number,
                frequency=float(frequencies[number]),
                color=(COLORS[most], float(sums[most]) / total),
                in_outputs=float(activity[cells[:, 1] == 1].sum()) / total,
                activity=activity,
                grids=list(_strongest(vectors, np.where(on_cell, activity, 0), grid_of, grids)),
            )
        )
    return found


def _strongest(
    vectors: Vectors, activity: NDArray[np.float32], grid_of: NDArray[np.int64], count: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the grids with the most active cells, each from a different task."""
    seen: set[str] = set()
    for place in np.argsort(-activity, kind="stable").tolist():
        if activity[place] <= 0 or len(seen) == count:
            return
        task = vectors.dataset.task_id(int(vectors.places.samples[place]))
        if task not in seen:
            seen.add(task)
            yield np.flatnonzero(grid_of == grid_of[place])
