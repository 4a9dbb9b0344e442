"""Axes of charts: scales from values to units of a drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Size and margins of a chart, and width of a character. One unit is about one pixel on a phone.
WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 40
LETTER = 6.5


@dataclass(frozen=True)
class Axis:
    """Scale that maps values to units of a chart.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        start: first unit.
        end: last unit.
        log: True for a logarithmic scale, which needs positive values.
        whole: True for values such as layers, with no ticks between whole numbers.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    def __call__(self, value: float) -> float:
        """Return the unit of a value."""
        if self.log:
            share = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Return about six round values along the axis."""
        span, decades = self.high - self.low, math.log10(self.high / self.low) if self.log else 0
        if decades > 0.9:
            steps = (1, 2, 5) if decades < 2.5 else (1,)
            every = math.ceil(decades / 7)
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [step * 10.0**p for p in powers if p % every == 0 for step in steps]
        else:
            power = 10.0 ** math.floor(math.log10(span / 4))
            step = next(power * each for each in (1, 2, 5, 10) if span / (power * each) <= 6)
            step = max(step, 1.0) if self.whole else step
            first = math.floor(self.low / step)
            values = [step * number for number in range(first, first + 9)]
        return [
            each for each in values if self.low <= each + span * 1e-9 <= self.high + span * 2e-9
        ]


def vertical(values: Iterable[float], log: bool = False, zero: bool = False) -> Axis:
    """Return a vertical axis for values, without non-finite values and invalid logarithms."""
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(finite), max(finite)) if finite else (1.0, 2.0)
    if log:
        return Axis(low / 1.1, high * 1.1, HEIGHT - BOTTOM, TOP, log=True)
    low = 0.0 if zero else low
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(low if zero else low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def horizontal(low: float, high: float, log: bool = False, whole: bool = False) -> Axis:
    """Return a horizontal axis between two values."""
    return Axis(low, high if high > low else low + 1, LEFT, WIDTH - RIGHT, log, whole)
