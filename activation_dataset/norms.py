"""Histograms of norms in bins that are fixed for all datasets.

They hold counts alone, so that they can be merged in any order, to the same histogram.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from activation_dataset.fields import FieldError, Fields

BINS_PER_OCTAVE = 64
"""Bins between a power of two and the next, equally wide: a bin is at most 1/64 of a norm wide."""

_DROPPED_BITS = 52 - BINS_PER_OCTAVE.bit_length() + 1
_INFINITY = 0x7FF0_0000_0000_0000 >> _DROPPED_BITS


@dataclass(frozen=True)
class NormHistogram:
    """How many of some norms are in each bin.

    Bin `k` holds the norms x with lower_edge(k) <= x < lower_edge(k + 1): the norms whose float64
    bits, but for the lowest 46, are `k`.

    Attributes:
        counts: bin to number of norms, ascending, without empty bins.
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
        """Norms in all bins."""
        return sum(self.counts.values())

    def quantile(self, q: float) -> float:
        """The norm below which a share `q` of them lies, 0 to 1; off by at most 1/128 of itself.

        It is the middle of the bin that holds the norm of rank ceil(q * total); 0 of no norms.
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
        return self.quantile(0.5)

    def count_from(self, norm: float) -> int:
        """Norms in the bin of `norm` and above it."""
        first = bin_of(norm)
        return sum(count for number, count in self.counts.items() if number >= first)

    def to_json(self) -> dict[str, int]:
        return {str(number): count for number, count in self.counts.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, object], where: str) -> NormHistogram:
        """Reads what `to_json` made.

        Raises:
            FieldError: a key is no bin, or a value no count.
        """
        fields = Fields(value, where)
        counts = {}
        for key in value:
            if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key) or int(key) >= _INFINITY:
                raise FieldError(f"{where} has the key {key!r}, expected a bin, 0..{_INFINITY - 1}")
            counts[int(key)] = fields.integer(key, minimum=1)
        return cls(dict(sorted(counts.items())))


def bin_of(norm: float) -> int:
    """The bin of a norm, finite and at least 0."""
    return int(np.float64(norm).view(np.int64)) >> _DROPPED_BITS


def lower_edge(number: int) -> float:
    """The smallest norm of a bin."""
    return float(np.int64(number << _DROPPED_BITS).view(np.float64))
