"""One layer's vectors by position, by what their tokens show, by dimension, and the outliers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import to_float32
from activation_dataset.prompts import ROLES
from activation_dataset.reading.layer_file import Run
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reading.vectors import Places
from activation_dataset.reporting.summary import OUTLIER_FACTORS
from activation_dataset.sites import Site

OUTLIERS_NAMED = 12
"""Outliers whose place is remembered; all are counted."""

KINDS = ("input cells", "output cells", "text")
"""What tokens show: rows of `LayerSurvey.kinds`."""

# Four bins from a power of two to the next, none narrower than a position.
POSITION_STARTS: NDArray[np.int64] = np.unique((2 ** (np.arange(84) / 4)).astype(np.int64) - 1)
"""[bins] int64: the first position of each bin of positions; the last bin has no end."""


@dataclass(frozen=True)
class Piece:
    """Samples of a shard that are read together, and the numbers of their vectors."""

    shard: int
    run: Run
    numbers: range


@dataclass(frozen=True, eq=False)
class LayerSurvey:
    """One layer of the vectors that were read. Those that are not finite are left out.

    Attributes:
        layer: which it is, a site.
        position_counts: [bins] int64, vectors in each bin of positions; none with pooling "mean",
            whose vectors have no position.
        position_norms: [bins] float64, their mean norm, 0 where there are none.
        position_outliers: [bins, 2] int64, those of at least 10 and 100 times the median norm.
        kinds: [kinds, 2] float64, count and mean norm of each of KINDS; as positions.
        largest: [hidden] float32, the largest absolute value of each dimension.
        top_norms, top_numbers: [n], norms and numbers of the largest outliers, the largest first.
        gram: [n, n] float32, products of the vectors that are compared, around the layer's mean.
        comparable: [n] bool, which of them are finite and no outliers.
        watched: [n] float64 for each range of numbers that was to be watched: the norms, 0 where a
            vector is not finite.
    """

    layer: Site
    position_counts: NDArray[np.int64]
    position_norms: NDArray[np.float64]
    position_outliers: NDArray[np.int64]
    kinds: NDArray[np.float64]
    largest: NDArray[np.float32]
    top_norms: NDArray[np.float64]
    top_numbers: NDArray[np.int64]
    gram: NDArray[np.float32]
    comparable: NDArray[np.bool_]
    watched: tuple[NDArray[np.float64], ...]


class LayerSurveyor:
    """Reads one layer and keeps sums, whose size does not depend on how much is read.

    Args:
        dataset: to read.
        layer: the site to read.
        median: its median norm.
        compared: [n] int64 ascending, numbers of vectors to compare between layers.
        watched: ranges of the numbers of vectors whose norms are wanted.
    """

    def __init__(
        self,
        dataset: ActivationDataset,
        layer: Site,
        median: float,
        compared: NDArray[np.int64],
        watched: Sequence[range],
    ) -> None:
        self._dataset, self._layer, self._compared = dataset, layer, compared
        self._bounds = [factor * median if median else np.inf for factor in OUTLIER_FACTORS]
        hidden, bins = dataset.kind.hidden, len(POSITION_STARTS)
        self._mean = dataset.metadata.statistics[layer].mean.astype(np.float32)
        self._rows = np.zeros((len(compared), hidden), np.float32)
        self._comparable = np.zeros(len(compared), np.bool_)
        self._positions = np.zeros((bins, 2))
        self._outliers = np.zeros((bins, len(OUTLIER_FACTORS)), np.int64)
        self._kinds = np.zeros((len(KINDS), 2))
        self._largest = np.zeros(hidden, np.float32)
        self._top_norms, self._top_numbers = np.empty(0), np.empty(0, np.int64)
        self._watched = [(numbers, np.zeros(len(numbers))) for numbers in watched]

    def survey(self, pieces: Iterable[Piece]) -> LayerSurvey:
        """Reads the pieces, those of a shard one after the other.

        Raises:
            CorruptRecordError: a record is damaged.
        """
        for shard, group in groupby(pieces, lambda piece: piece.shard):
            with self._dataset.layer_file(self._layer, shard) as file:
                for piece in group:
                    start = piece.numbers.start
                    norms = [np.empty(0)]
                    for stored in file.pieces(piece.run):
                        values = np.require(to_float32(stored), requirements="A")
                        norms.append(self._add_values(values, start))
                        start += len(values)
                    self._add_norms(np.concatenate(norms), piece.numbers)
        return LayerSurvey(
            layer=self._layer,
            position_counts=self._positions[:, 0].astype(np.int64),
            position_norms=_mean_norms(self._positions),
            position_outliers=self._outliers,
            kinds=np.stack([self._kinds[:, 0], _mean_norms(self._kinds)], axis=1),
            largest=self._largest,
            top_norms=self._top_norms,
            top_numbers=self._top_numbers,
            gram=self._rows @ self._rows.T,
            comparable=self._comparable,
            watched=tuple(norms for _, norms in self._watched),
        )

    def _add_values(self, values: NDArray[np.float32], start: int) -> NDArray[np.float64]:
        """Takes [n, hidden], the vectors from number `start` on; gives [n] norms, or NaN."""
        norms: NDArray[np.float64] = np.sqrt(
            np.einsum("nh,nh->n", values, values, dtype=np.float64)
        )
        finite = np.isfinite(norms)
        if not finite.all():
            norms[~finite] = np.nan
            values = np.where(finite[:, None], values, np.float32(0))
        np.maximum(self._largest, np.abs(values).max(axis=0, initial=0), out=self._largest)
        first, last = np.searchsorted(self._compared, [start, start + len(values)]).tolist()
        rows = self._compared[first:last] - start
        self._rows[first:last] = values[rows] - self._mean
        self._comparable[first:last] = norms[rows] < self._bounds[0]  # false for NaN
        return norms

    def _add_norms(self, norms: NDArray[np.float64], numbers: range) -> None:
        """Takes the [n] norms of a piece, NaN where a vector is not finite."""
        for wanted, kept in self._watched:
            if numbers.start <= wanted.start < numbers.stop:
                first = wanted.start - numbers.start
                kept[:] = np.nan_to_num(norms[first : first + len(wanted)])
        finite = np.isfinite(norms)
        where = np.arange(numbers.start, numbers.stop)[finite]
        norms = norms[finite]
        candidates = norms >= self._bounds[0]
        top_norms = np.concatenate([self._top_norms, norms[candidates]])
        top_numbers = np.concatenate([self._top_numbers, where[candidates]])
        best = np.argsort(-top_norms, kind="stable")[:OUTLIERS_NAMED]
        self._top_norms, self._top_numbers = top_norms[best], top_numbers[best]
        if self._dataset.kind.pooling != "mean":
            self._add_places(norms, self._dataset.locate(where))

    def _add_places(self, norms: NDArray[np.float64], places: Places) -> None:
        bins = np.searchsorted(POSITION_STARTS, places.positions, side="right") - 1
        _add_by(self._positions, bins, norms)
        for column, bound in enumerate(self._bounds):
            outside = bins[norms >= bound]
            self._outliers[:, column] += np.bincount(outside, minlength=len(POSITION_STARTS))
        roles = places.cells[:, 1]
        _add_by(self._kinds, np.where(roles < 0, len(ROLES), roles), norms)


def _add_by(
    sums: NDArray[np.float64], groups: NDArray[np.int64], norms: NDArray[np.float64]
) -> None:
    """Adds counts and norms to the two columns of the sums of their groups."""
    sums[:, 0] += np.bincount(groups, minlength=len(sums))
    sums[:, 1] += np.bincount(groups, norms, minlength=len(sums))


def _mean_norms(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = sums[:, 1] / np.maximum(sums[:, 0], 1)
    return means
