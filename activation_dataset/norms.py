"""Histograms of norms in bins that are the same for all datasets.

They consist of counts, so merging them in any order gives the same histogram.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from activation_dataset.fields import FieldError, Json, from_json

BINS_PER_OCTAVE = 64
"""Equally wide bins between a power of two and the next: a bin is at most 1/64 of a norm wide."""

_DROPPED_BITS = 52 - BINS_PER_OCTAVE.bit_length() + 1
_INFINITY = 0x7FF0_0000_0000_0000 >> _DROPPED_BITS


@dataclass(frozen=True)
class NormHistogram:
    """Number of norms in each bin that is not empty, by ascending bin.

    Bin `k` holds the norms x with lower_edge(k) <= x < lower_edge(k + 1): the norms whose float64
    bits, but for the lowest 46, are `k`.
    """

    counts: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, norms: NDArray[np.float64]) -> NormHistogram:
        """The histogram of norms [n] float64, finite and at least 0."""
        if not len(norms):
            return cls()
        bins = norms.view(np.int64) >> _DROPPED_BITS
        first = int(bins.min())
        counts = np.bincount(bins - first)  # far quicker than sorting them
        found = np.flatnonzero(counts)
        return cls(dict(zip((found + first).tolist(), counts[found].tolist(), strict=True)))

    def merge(self, other: NormHistogram) -> NormHistogram:
        """The histogram of these norms and the other ones."""
        if not self.counts or not other.counts:
            return self if self.counts else other
        counts = Counter(self.counts)
        counts.update(other.counts)
        return NormHistogram(dict(sorted(counts.items())))

    @property
    def total(self) -> int:
        """Number of all norms."""
        return sum(self.counts.values())

    def quantile(self, q: float) -> float:
        """The middle of the bin of the norm of rank ceil(q * total), at most 1/128 off; 0 without
        norms."""
        rank = max(1, math.ceil(q * self.total))
        reached = 0
        for number, count in self.counts.items():
            reached += count
            if reached >= rank:
                return (lower_edge(number) + lower_edge(number + 1)) / 2
        return 0.0

    @property
    def median(self) -> float:
        """The quantile 0.5."""
        return self.quantile(0.5)

    def count_from(self, norm: float) -> int:
        """Number of norms in the bin of `norm` and above."""
        first = int(np.float64(norm).view(np.int64)) >> _DROPPED_BITS
        return sum(count for number, count in self.counts.items() if number >= first)

    def near(self, other: NormHistogram) -> bool:
        """Return True if moving each norm by at most one bin leads from one to the other."""
        ours, theirs = np.zeros((2, _INFINITY + 1), np.int64)
        for reached, each in ((ours, self), (theirs, other)):
            reached[list(each.counts)] = list(each.counts.values())
            np.cumsum(reached, out=reached)
        return bool((ours[:-1] <= theirs[1:]).all() and (theirs[:-1] <= ours[1:]).all())

    def to_json(self) -> dict[str, int]:
        return {str(number): count for number, count in self.counts.items()}

    @classmethod
    def from_json(cls, value: Json, where: str) -> NormHistogram:
        """Read the result of `to_json`. Raises FieldError, which calls it `where`."""
        counts = from_json(Mapping[int, int], value, where)
        if any(not 0 <= number < _INFINITY or count < 1 for number, count in counts.items()):
            raise FieldError(f"{where} has keys outside 0..{_INFINITY - 1}, or counts below 1")
        return cls(dict(sorted(counts.items())))


def lower_edge(number: int) -> float:
    """The smallest norm of a bin."""
    return float(np.int64(number << _DROPPED_BITS).view(np.float64))
