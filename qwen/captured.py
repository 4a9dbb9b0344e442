"""Captured vectors of one step, copied to the host and put in the order of its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics
from activation_dataset.storage_dtype import StorageDtype
from qwen.batching import Step
from qwen.programs import Captured
from qwen.statistics import statistics_of


@dataclass(frozen=True)
class CapturedSamples:
    """Captured vectors of the samples of one step, at every site.

    Attributes:
        samples: indices of the samples in the argument of `extract`.
        vector_counts: number of vectors of each sample: 1 if pooled, else its chosen tokens.
        vectors: [sum(vector_counts), row elements] for each site, in sample order, in
            `storage_dtype`, where bfloat16 is the dtype of ml_dtypes. Arrays may be read-only.
        statistics: statistics of these vectors, for each site.
        slots: token slots of the step, including padding.
    """

    samples: tuple[int, ...]
    vector_counts: tuple[int, ...]
    vectors: Mapping[Site, np.ndarray]
    statistics: Mapping[Site, LayerStatistics]
    slots: int


def on_host(
    step: Step,
    captured: Mapping[Site, Captured],
    vector_counts: Sequence[int],
    storage_dtype: StorageDtype,
) -> CapturedSamples:
    """Wait for the results of a step, and drop their padding.

    Args:
        step: the step that the device ran.
        captured: results of the step by site.
        vector_counts: number of vectors of each sample, in the order of the step's placements.
        storage_dtype: dtype of the vectors to return.
    """
    rows = np.array([placed.row for placed in step.placements])
    counts = np.asarray(vector_counts)
    places = np.empty_like(rows)
    for row in set(rows.tolist()):
        within = counts[rows == row]
        places[rows == row] = np.cumsum(within) - within
    vectors: dict[Site, np.ndarray] = {}
    statistics: dict[Site, LayerStatistics] = {}
    for site in captured:
        array, moments = map(np.asarray, captured[site])
        starts = rows * array.shape[1] + places
        found = _spans(array.reshape(-1, array.shape[-1]), starts, counts)
        if storage_dtype == "float32":
            found = found.astype(np.float32, copy=False)
        vectors[site] = found
        statistics[site] = statistics_of(moments, found)
    indices = tuple(placed.sample for placed in step.placements)
    return CapturedSamples(indices, tuple(vector_counts), vectors, statistics, step.shape.slots)


def _spans(vectors: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Take `counts` vectors from each start: [sum(counts), hidden], a view if possible."""
    ends = starts + counts
    if np.array_equal(starts[1:], ends[:-1]):
        return vectors[starts[0] : ends[-1]]
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    return np.concatenate([vectors[start:end] for start, end in spans])
