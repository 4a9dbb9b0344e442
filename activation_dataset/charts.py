"""Charts as SVG text, coloured by the classes of the page that they stand in.

Classes: `line`, `area`, `box`, `dot` and so on for shapes, `s0`, `s1`, ... for series, `h0` to `hf`
for the sixteen levels of heat. All text that comes from data is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from activation_dataset.summary import number

WIDTH, HEIGHT = 400, 250
"""Units of a chart, which is scaled to the width of the page; a phone shows about one a pixel."""

LEVELS = "0123456789abcdef"
"""The levels of heat, from low to high."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 40
_LETTER = 6.5
_TALLEST = 300
_MAX_TITLES = 2000


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
        return Axis(low / 1.1, high * 1.1, HEIGHT - _BOTTOM, _TOP, log=True)
    low = 0.0 if zero else low
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(low if zero else low - margin, high + margin, HEIGHT - _BOTTOM, _TOP)


def horizontal(low: float, high: float, log: bool = False) -> Axis:
    """The level axis."""
    return Axis(low, high if high > low else low + 1, _LEFT, WIDTH - _RIGHT, log)


@dataclass(frozen=True, eq=False)
class Boxes:
    """Quantiles of a layer's norms, each list one value for each layer."""

    low: Sequence[float]
    lower: Sequence[float]
    middle: Sequence[float]
    upper: Sequence[float]
    high: Sequence[float]
    mean: Sequence[float]
    top: Sequence[float]


def boxes(names: Sequence[str], data: Boxes, label: str) -> str:
    """A box for each layer: 0.01 to 0.99 as a line, the quarters as a box, and mean and maximum."""
    axis = vertical([*data.low, *data.top, *data.mean], log=True)
    column, width = _columns(len(names))
    half = round(min(width * 0.32, 9), 1)
    shapes = []
    for place, name in enumerate(names):
        x = column(place)
        low, lower, middle, upper, high, mean, top = (
            axis(max(values[place], axis.low))
            for values in (
                data.low,
                data.lower,
                data.middle,
                data.upper,
                data.high,
                data.mean,
                data.top,
            )
        )
        title = f"layer {name}: median {number(data.middle[place])}, max {number(data.top[place])}"
        shapes.append(
            f'<g><title>{escape(title)}</title><path class="whisker" d="M{x} {low}V{high}"/>'
            f'<rect class="box" x="{x - half:.1f}" y="{upper}" width="{2 * half:.1f}" '
            f'height="{max(lower - upper, 1):.1f}" rx="1"/>'
            f'<path class="median" d="M{x - half:.1f} {middle}h{2 * half:.1f}"/>'
            f'<circle class="mean" cx="{x}" cy="{mean}" r="2.2"/>'
            f'<path class="top" d="M{x - 3:.1f} {top}l3 -3 3 3 -3 3z"/></g>'
        )
    return _figure(label, _upright(axis) + _names(names, "layer") + "".join(shapes))


def lines(names: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], label: str) -> str:
    """A line for each series over the layers; values that are NaN are left out."""
    axis = vertical([value for _, values in series for value in values])
    column, _ = _columns(len(names))
    shapes = []
    for place, (title, values) in enumerate(series):
        points = [
            (column(n), axis(value)) for n, value in enumerate(values) if math.isfinite(value)
        ]
        path = "L".join(f"{x} {y}" for x, y in points)
        dots = "".join(f"M{x} {y}h0" for x, y in points)
        shapes.append(
            f'<g class="s{place}"><title>{escape(title)}</title>'
            f'<path class="line" d="M{path}"/><path class="dots" d="{dots}"/></g>'
        )
    return _figure(label, _upright(axis) + _names(names, "layer") + "".join(shapes))


def curves(
    steps: Sequence[float],
    series: Sequence[tuple[str, Sequence[float]]],
    label: str,
    unit: str,
    log: bool = False,
) -> str:
    """A line for each series over numbers, ascending and at least two; values are finite.

    Args:
        unit: what the numbers are.
        log: whether the upright axis is logarithmic; then values are above 0.
    """
    axis = vertical([value for _, values in series for value in values], log)
    across = horizontal(steps[0], steps[-1])
    shapes = []
    for place, (title, values) in enumerate(series):
        points = zip(steps, values, strict=True)
        path = "L".join(f"{across(step)} {axis(value)}" for step, value in points)
        shapes.append(
            f'<g class="s{place}"><title>{escape(title)}</title>'
            f'<path class="line" d="M{path}"/></g>'
        )
    base = HEIGHT - _BOTTOM
    ticks = ""
    for value in across.ticks():
        name = _short(value)
        ticks += _text(min(across(value), WIDTH - len(name) * _LETTER / 2), base + 15, name)
    return _figure(label, _upright(axis) + ticks + _axis_name(unit) + "".join(shapes))


def histogram(values: NDArray[np.int64], label: str, unit: str, marks: dict[str, float]) -> str:
    """Bars over a logarithmic axis where the values span more than a decade; [n], at least one."""
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high / max(low, 1) > 8
    bins = int(min(40, max(8, math.sqrt(len(values)) * 1.5)))
    edges = np.geomspace(low, high + 1, bins + 1) if log else np.linspace(low, high + 1, bins + 1)
    counts, _ = np.histogram(values, edges)
    across = horizontal(float(edges[0]), float(edges[-1]), log)
    axis = vertical([*counts.tolist(), 4], zero=True)
    base = HEIGHT - _BOTTOM
    shapes = []
    for count, first, last in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        if count:
            x, end, y = across(float(first)), across(float(last)), axis(count)
            title = f"{first:,.0f} to {last - 1:,.0f} {unit}: {count:,}"
            shapes.append(
                f'<rect class="bar" x="{x + 0.5:.1f}" y="{y}" '
                f'width="{max(end - x - 1, 0.8):.1f}" height="{base - y:.1f}">'
                f"<title>{escape(title)}</title></rect>"
            )
    for name, value in marks.items():
        x = across(min(max(value, across.low), across.high))
        right = x > WIDTH * 0.8
        note = _text(x - 4 if right else x + 4, _TOP + 10, name, "end" if right else "start")
        shapes.append(f'<path class="mark" d="M{x} {_TOP}V{base}"/>{note}')
    ticks = "".join(_text(across(value), base + 15, _short(value)) for value in across.ticks())
    return _figure(label, _upright(axis) + ticks + _axis_name(unit) + "".join(shapes))


def heat_map(
    levels: NDArray[np.int64],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    title: Callable[[int, int], str],
    names: tuple[str, str] = ("", ""),
) -> str:
    """Cells by heat, [rows, columns] of 0..15, or -1 for nothing; the first row at the bottom.

    Args:
        rows, columns: their names, of which as many are written as there is room for.
        title: what is said of a cell (row, column).
        names: of the rows' and columns' axis.
    """
    left, top = 34, 6
    width = (WIDTH - left - 4) / len(columns)
    height = width
    if len(rows) != len(columns):
        height = min(18.0, max(width, 14.0), max(_TALLEST / len(rows), 3.0))
    total = height * len(rows) + top + 34
    say = len(rows) * len(columns) <= _MAX_TITLES
    shapes = []
    for row in range(len(rows)):
        y = top + (len(rows) - 1 - row) * height
        for column in range(len(columns)):
            level = int(levels[row, column])
            if level >= 0:
                inside = f"<title>{escape(title(row, column))}</title>" if say else ""
                shapes.append(
                    f'<rect class="h{LEVELS[level]}" x="{left + column * width:.1f}" y="{y:.1f}" '
                    f'width="{width - 0.4:.1f}" height="{height - 0.4:.1f}">{inside}</rect>'
                )
    for row in range(0, len(rows), max(1, math.ceil(11 / height))):
        middle = top + (len(rows) - 0.5 - row) * height
        shapes.append(_text(left - 5, middle + 4, rows[row], "end"))
    base = top + len(rows) * height
    widest = max(map(len, columns)) * _LETTER + 8
    shapes += [
        _text(
            min(left + (column + 0.5) * width, WIDTH - len(columns[column]) * _LETTER / 2),
            base + 14,
            columns[column],
        )
        for column in range(0, len(columns), max(1, math.ceil(widest / width)))
    ]
    shapes.append(_text((left + WIDTH) / 2, base + 29, names[1]))
    middle = (top + base) / 2
    shapes.append(
        f'<g transform="translate(9 {middle:.1f}) rotate(-90)">{_text(0, 0, names[0])}</g>'
    )
    return _figure(label, "".join(shapes), math.ceil(total))


def scatter(
    points: NDArray[np.float64], groups: NDArray[np.int64], reach: float, label: str
) -> str:
    """A small square map of points [n, 2] from -reach to reach, coloured by group [n] 0, 1, ..."""
    side = 160
    places = np.clip(points / reach, -1, 1) * [1, -1] * (side / 2 - 4) + side / 2
    shapes = [f'<rect class="plot" width="{side}" height="{side}" rx="6"/>']
    for group in np.unique(groups).tolist():
        path = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in places[groups == group].tolist())
        shapes.append(f'<path class="points s{group}" d="{path}"/>')
    return (
        f'<svg viewBox="0 0 {side} {side}" role="img" aria-label="{escape(label)}">'
        f"{''.join(shapes)}</svg>"
    )


def heat(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.int64]:
    """Levels 0..15 of values between two ends, which stand for all beyond them."""
    span = high - low if high > low else 1.0
    shares = np.clip((values - low) / span, 0, 1)
    return np.minimum((shares * len(LEVELS)).astype(np.int64), len(LEVELS) - 1)


def ramp(low: str, high: str) -> str:
    """A key to the colours of heat, with what its ends stand for."""
    cells = "".join(f'<i class="h{level}"></i>' for level in LEVELS)
    return (
        f'<p class="ramp"><span>{escape(low)}</span><b>{cells}</b><span>{escape(high)}</span></p>'
    )


def key(names: Sequence[str]) -> str:
    """A key to the colours of series."""
    items = "".join(
        f'<span><i class="s{n}"></i>{escape(each)}</span>' for n, each in enumerate(names)
    )
    return f'<p class="key">{items}</p>'


def _columns(count: int) -> tuple[Callable[[int], float], float]:
    """The middle of each of some columns, and their width."""
    width = (WIDTH - _LEFT - _RIGHT) / count
    return lambda place: round(_LEFT + (place + 0.5) * width, 1), width


def _names(names: Sequence[str], axis: str) -> str:
    column, width = _columns(len(names))
    every = max(1, math.ceil((max(map(len, names)) * _LETTER + 8) / width))
    base = HEIGHT - _BOTTOM
    ticks = "".join(
        _text(column(place), base + 15, names[place]) for place in range(0, len(names), every)
    )
    return ticks + _axis_name(axis)


def _axis_name(name: str) -> str:
    return _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8, name)


def _upright(axis: Axis) -> str:
    return "".join(
        f'<path class="rule" d="M{_LEFT} {axis(value)}H{WIDTH - _RIGHT}"/>'
        + _text(_LEFT - 6, axis(value) + 4, _short(value), "end")
        for value in axis.ticks()
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(value: float) -> str:
    """A tick's value in few characters."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):g}{unit}"
    return f"{value:.10g}" if abs(value) < 1e-3 else f"{value:.6g}"


def _figure(label: str, shapes: str, height: int = HEIGHT) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(label)}">{shapes}</svg>'
    )
