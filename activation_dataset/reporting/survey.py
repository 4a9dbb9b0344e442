"""What only the vectors themselves can say of a dataset: by position, by token, between layers.

A survey reads all vectors, or a bounded and seeded choice of them: whole samples, one layer after
the other. Its memory does not grow with the dataset but for some hundred bytes of each prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from activation_dataset.reading.layer_file import runs_of
from activation_dataset.reading.provenance import Origin
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reading.vectors import Places
from activation_dataset.reporting.similarity import Likeness, compare_layers
from activation_dataset.reporting.summary import summaries
from activation_dataset.reporting.survey_layer import (
    OUTLIERS_NAMED,
    LayerSurvey,
    LayerSurveyor,
    Piece,
)
from activation_dataset.reporting.survey_prompts import PromptSurvey, survey_prompts
from activation_dataset.sites import Site

MAX_SHARDS = 64
"""Shards that a bounded survey looks at."""
MAX_VECTORS = 1 << 15
"""Vectors of each layer that it reads, or somewhat more, because samples are read whole."""
MAX_BYTES = 1 << 30
"""Bytes of vectors that it reads in all layers, or somewhat more."""

COMPARED_VECTORS = 512
"""Vectors by which layers are compared."""
GRIDS_SHOWN = 2
"""Prompts whose grids are remembered."""

_LEAST_COMPARED = 16
_LEAST_CELLS, _MOST_CELLS = 40, 900


@dataclass(frozen=True)
class Outlier:
    """One of the largest vectors.

    Attributes:
        origin: where it comes from.
        layer: at which site it is the largest, compared with the median norm.
        norm: its norm there.
        factor: that norm in medians.
    """

    origin: Origin
    layer: Site
    norm: float
    factor: float


@dataclass(frozen=True, eq=False)
class GridNorms:
    """A prompt that shows grids, and its vectors' norms.

    Attributes:
        sample_id: whose prompt.
        places: of its tokens.
        norms: [layers, tokens] float64, 0 where a vector is not finite.
    """

    sample_id: str
    places: Places
    norms: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found.

    Attributes:
        prompts: of the prompts.
        vectors: how many vectors of each layer were read.
        whole: whether those are all.
        layers: by layer, ascending.
        outliers: the largest, by their factors; a few, each vector once.
        likeness: the layers compared on some of the vectors that are outliers in no layer; None if
            there is one layer only, or too few vectors.
        compared: those vectors' places, in the order of `likeness`.
        grids: prompts that show grids; none unless every token has a vector.
    """

    prompts: PromptSurvey
    vectors: int
    whole: bool
    layers: tuple[LayerSurvey, ...]
    outliers: tuple[Outlier, ...]
    likeness: Likeness | None
    compared: Places
    grids: tuple[GridNorms, ...]


def survey(dataset: ActivationDataset, whole: bool = False, seed: int = 0) -> Survey:
    """Reads a dataset, or as much of it as the bounds above allow.

    Args:
        dataset: to read.
        whole: read everything, however long that takes.
        seed: of the choice: the same seed chooses the same vectors.

    Raises:
        CorruptRecordError: a record that was read is damaged.
    """
    rng = np.random.default_rng(seed)
    shards = list(range(len(dataset.metadata.shards)))
    if not whole and len(shards) > MAX_SHARDS:
        shards = sorted(rng.permutation(shards)[:MAX_SHARDS].tolist())
    pieces = [
        Piece(shard, run, dataset.numbers(shard, run))
        for shard in shards
        for run in runs_of(dataset.index(shard))
    ]
    if not whole:
        pieces = _bounded(pieces, _max_vectors(dataset), rng)
    compared = _some_numbers(pieces, rng)
    shown = list(_prompts_with_grids(dataset, pieces))
    layers = tuple(
        LayerSurveyor(dataset, each.layer, each.median_norm, compared, shown).survey(pieces)
        for each in summaries(dataset.metadata)
    )
    usual = np.logical_and.reduce([each.comparable for each in layers])
    likeness = None
    if len(layers) > 1 and np.count_nonzero(usual) >= _LEAST_COMPARED:
        likeness = compare_layers([each.gram for each in layers], usual)
    vectors = sum(len(piece.numbers) for piece in pieces)
    return Survey(
        prompts=survey_prompts(dataset, shards),
        vectors=vectors,
        whole=vectors == dataset.num_vectors,
        layers=layers,
        outliers=tuple(_outliers(dataset, layers)),
        likeness=likeness,
        compared=dataset.locate(compared[usual]),
        grids=tuple(
            _grid_norms(dataset, numbers, np.stack([each.watched[place] for each in layers]))
            for place, numbers in enumerate(shown)
        ),
    )


def _max_vectors(dataset: ActivationDataset) -> int:
    return min(MAX_VECTORS, MAX_BYTES // (dataset.kind.vector_bytes * len(dataset.sites)))


def _bounded(pieces: Sequence[Piece], bound: int, rng: np.random.Generator) -> list[Piece]:
    """So many of them, at random, that they reach the bound; in their order."""
    chosen = []
    vectors = 0
    for place in rng.permutation(len(pieces)).tolist():
        chosen.append(place)
        vectors += len(pieces[place].numbers)
        if vectors >= bound:
            break
    return [pieces[place] for place in sorted(chosen)]


def _some_numbers(pieces: Sequence[Piece], rng: np.random.Generator) -> NDArray[np.int64]:
    """The numbers of vectors to compare, ascending."""
    ends = np.cumsum([0, *(len(piece.numbers) for piece in pieces)])
    count = min(COMPARED_VECTORS, int(ends[-1]))
    places = np.sort(rng.choice(int(ends[-1]), count, replace=False))
    which = np.searchsorted(ends, places, side="right") - 1
    starts = np.array([piece.numbers.start for piece in pieces], np.int64)
    numbers: NDArray[np.int64] = starts[which] + places - ends[which]
    return numbers


def _prompts_with_grids(dataset: ActivationDataset, pieces: Sequence[Piece]) -> Iterator[range]:
    """The numbers of the tokens of a few prompts whose cells are neither too few nor too many."""
    if dataset.kind.pooling != "none":
        return
    found = 0
    for piece in pieces:
        index = dataset.index(piece.shard)
        for sample in range(piece.run.first, piece.run.last):
            end = int(index.token_ends[sample])
            start = end - int(index.token_counts[sample])
            cells = np.count_nonzero(index.cells[start:end, 1] >= 0)
            if _LEAST_CELLS <= cells <= _MOST_CELLS:
                before = int(index.token_ends[piece.run.first - 1]) if piece.run.first else 0
                first = piece.numbers.start - before
                yield range(first + start, first + end)
                found += 1
                if found == GRIDS_SHOWN:
                    return


def _outliers(dataset: ActivationDataset, layers: Sequence[LayerSurvey]) -> Iterator[Outlier]:
    largest: dict[int, tuple[float, float, int]] = {}
    sites = [each.layer for each in layers]
    for place, (each, summary) in enumerate(zip(layers, summaries(dataset.metadata), strict=True)):
        tops = zip(each.top_norms.tolist(), each.top_numbers.tolist(), strict=True)
        for norm, number in tops:
            candidate = norm / summary.median_norm, norm, place
            largest[number] = max(largest.get(number, candidate), candidate)
    ordered = sorted(largest.items(), key=lambda item: (-item[1][0], item[0]))
    for number, (factor, norm, place) in ordered[:OUTLIERS_NAMED]:
        yield Outlier(dataset.trace(number), sites[place], norm, factor)


def _grid_norms(
    dataset: ActivationDataset, numbers: range, norms: NDArray[np.float64]
) -> GridNorms:
    places = dataset.locate(np.arange(numbers.start, numbers.stop))
    return GridNorms(dataset.sample_id(int(places.samples[0])), places, norms)
