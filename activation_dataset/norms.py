"""Histograms of norms, with the same bins for all datasets.

A histogram consists of counts, so the result of a merge does not depend on the order.
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
"""Number of bins of equal width between two powers of two: a bin is at most 1/64 of a norm wide."""

_DROPPED_BITS = 52 - BINS_PER_OCTAVE.bit_length() + 1
_INFINITY = 0x7FF0_0000_0000_0000 >> _DROPPED_BITS


@dataclass(frozen=True)
class NormHistogram:
    """Number of norms in each bin.

    Bin `k` holds the norms x with lower_edge(k) <= x < lower_edge(k + 1): the norms whose float64
    bits without the lowest 46 are `k`.

    Attributes:
        counts: number of norms in each bin that is not empty, by ascending bin.
    """

    counts: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, norms: NDArray[np.float64]) -> NormHistogram:
        """Return the histogram of norms [n] float64, finite and at least 0."""
        if not len(norms):
            return cls()
        bins = norms.view(np.int64) >> _DROPPED_BITS
        first = int(bins.min())
        counts = np.bincount(bins - first)  # Much faster than np.unique, which sorts.
        found = np.flatnonzero(counts)
        return cls(dict(zip((found + first).tolist(), counts[found].tolist(), strict=True)))

    def merge(self, other: NormHistogram) -> NormHistogram:
        """Return the histogram of the norms of both histograms."""
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
        """Return the quantile `q`, with a relative error of at most 1/128; 0 without norms.

        The result is the middle of the bin of the norm of rank ceil(q * total).
        """
        rank = max(1, math.ceil(q * self.total))
        reached = 0
        for number, count in self.counts.items():
            reached += count
            if reached >= rank:
                return (lower_edge(number) + lower_edge(number + 1)) / 2
        return 0.0

    @property
    def median(self) -> float:
        """Quantile 0.5."""
        return self.quantile(0.5)

    def count_from(self, norm: float) -> int:
        """Return the number of norms in the bin of `norm` and above."""
        first = int(np.float64(norm).view(np.int64)) >> _DROPPED_BITS
        return sum(count for number, count in self.counts.items() if number >= first)

    def near(self, other: NormHistogram) -> bool:
        """Return True if moving each norm by at most one bin turns one histogram into the other."""
        ours, theirs = np.zeros((2, _INFINITY + 1), np.int64)
        for reached, each in ((ours, self), (theirs, other)):
            reached[list(each.counts)] = list(each.counts.values())
            np.cumsum(reached, out=reached)
        return bool((ours[:-1] <= theirs[1:]).all() and (theirs[:-1] <= ours[1:]).all())

    def to_json(self) -> dict[str, int]:
        """Return the counts by bin, as JSON."""
        return {str(number): count for number, count in self.counts.items()}

    @classmethod
    def from_json(cls, value: Json, where: str) -> NormHistogram:
        """Read the result of `to_json`.

        Raises:
            FieldError: if the value is not such a result. The message begins with `where`.
        """
        counts = from_json(Mapping[int, int], value, where)
        if any(not 0 <= number < _INFINITY or count < 1 for number, count in counts.items()):
            raise FieldError(
                f"{where} has keys outside 0..{_INFINITY - 1}, or counts that are not positive"
            )
        return cls(dict(sorted(counts.items())))


def lower_edge(number: int) -> float:
    """Return the smallest norm of a bin."""
    return float(np.int64(number << _DROPPED_BITS).view(np.float64))
