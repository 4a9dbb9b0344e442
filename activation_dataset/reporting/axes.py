"""Axes of charts: values to units, and what is written along them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from activation_dataset.sites import Site, place_of

WIDTH, HEIGHT = 400, 250
"""Units of a chart, which is scaled to the width of the page; a phone shows about one a pixel."""

LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 40
"""Units around what is drawn."""

LETTER = 6.5
"""Units of a letter's width, about."""


@dataclass(frozen=True)
class Axis:
    """Values to units of a chart.

    Attributes:
        low, high: the values at the ends.
        start, end: the units there.
        log: whether the scale is logarithmic; then the values are above 0.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values along the axis, about six."""
        decades = math.log10(self.high / self.low) if self.log else 0
        values = self._powers(decades) if decades > 0.9 else self._multiples()
        tolerance = 1e-9 * (self.high - self.low)
        return [value for value in values if self.low <= value + tolerance <= self.high + tolerance]

    def _powers(self, decades: float) -> list[float]:
        """Powers of ten that are not too many, or those times 1, 2 and 5 if they are too few."""
        steps = (1, 2, 5) if decades < 2.5 else (1,)
        every = math.ceil(decades / 7)
        first = math.floor(math.log10(self.low) / every) * every
        last = math.ceil(math.log10(self.high))
        return [step * 10.0**power for power in range(first, last + 1, every) for step in steps]

    def _multiples(self) -> list[float]:
        """Multiples of a power of ten times 1, 2 or 5."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / 4))
        step = next(power * each for each in (1, 2, 5, 10) if span / (power * each) <= 6)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [step * each for each in range(first, last + 1)]


def vertical(values: Iterable[float], log: bool = False, zero: bool = False) -> Axis:
    """The upright axis for some values; those that have no logarithm do not count on such a one."""
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(finite), max(finite)) if finite else (1.0, 2.0)
    if log:
        return Axis(low / 1.1, high * 1.1, HEIGHT - BOTTOM, TOP, log=True)
    low = 0.0 if zero else low
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(low if zero else low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def horizontal(low: float, high: float, log: bool = False) -> Axis:
    """The level axis."""
    return Axis(low, high if high > low else low + 1, LEFT, WIDTH - RIGHT, log)


@dataclass(frozen=True)
class Labels:
    """What is written along an axis of things that are counted, such as layers.

    Attributes:
        names: of each, short.
        axis: what they are.
        groups: name and number of those that belong together, in order; empty if all do.
    """

    names: Sequence[str]
    axis: str = ""
    groups: Sequence[tuple[str, int]] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def longest(self) -> float:
        """Units that the longest name takes."""
        return LETTER * max(map(len, self.names))

    def starts(self) -> list[int]:
        """Where groups begin, but for the first."""
        return list(accumulate(count for _, count in self.groups))[:-1]

    def middles(self) -> Iterator[tuple[str, float]]:
        """The groups' names, and where their middles are."""
        start = 0
        for name, count in self.groups:
            yield name, start + count / 2
            start += count

    def shown(self, size: float, needed: float) -> Iterator[int]:
        """Which of the names to write, where each place has `size` units and a name needs some:
        those at equal steps from the start of each group."""
        every = max(1, math.ceil(needed / size))
        start = 0
        for count in [count for _, count in self.groups] or [len(self)]:
            for place in range(0, count, every):
                crowded = start + count < len(self) and (count - place) * size < needed
                if not place or not crowded:
                    yield start + place
            start += count


def layer_labels(sites: Sequence[Site]) -> Labels:
    """The layers, in groups by hook point if there are several hook points."""
    places = [place_of(site) for site in sites]
    hook_points = [hook_point for _, hook_point in places]
    groups = [(each, hook_points.count(each)) for each in dict.fromkeys(hook_points)]
    names = [str(layer) for layer, _ in places]
    return Labels(names, "layer", groups if len(groups) > 1 else ())
