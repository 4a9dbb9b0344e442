"""Charts as SVG text, coloured by the classes of the page that they stand in.

Classes: `line`, `area`, `box`, `dot` and so on for shapes, `s0`, `s1`, ... for series, `h0` to `hf`
for the sixteen levels of heat. All text that comes from data is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from activation_dataset.reporting.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTER,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Labels,
    horizontal,
    vertical,
)

LEVELS = "0123456789abcdef"
"""The levels of heat, from low to high."""

_TALLEST = 300
_MAX_TITLES = 2000
_NARROW = 5
"""Columns and cells of fewer units have no room for dots, and for gaps between them."""


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


def boxes(labels: Labels, data: Boxes, label: str, title: Callable[[int], str]) -> str:
    """A box for each layer: 0.01 to 0.99 as a line, the quarters as a box, and mean and maximum.

    Args:
        title: what is said of a layer.
    """
    axis = vertical([*data.low, *data.top, *data.mean], log=True)
    column, width = _columns(len(labels))
    half = round(min(width * 0.32, 9), 1)
    radius, reach = round(min(width * 0.4, 2.2), 1), round(min(width * 0.5, 3), 1)
    shapes = []
    for place in range(len(labels)):
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
        shapes.append(
            f'<g><title>{escape(title(place))}</title><path class="whisker" d="M{x} {low}V{high}"/>'
            f'<rect class="box" x="{x - half:.1f}" y="{upper}" width="{2 * half:.1f}" '
            f'height="{max(lower - upper, 1):.1f}" rx="1"/>'
            f'<path class="median" d="M{x - half:.1f} {middle}h{2 * half:.1f}"/>'
            f'<circle class="mean" cx="{x}" cy="{mean}" r="{radius}"/>'
            f'<path class="top" d="M{x - reach:.1f} {top}l{reach} -{reach} {reach} {reach} '
            f'-{reach} {reach}z"/></g>'
        )
    return _figure(label, _upright(axis) + _across(labels) + "".join(shapes))


def lines(labels: Labels, series: Sequence[tuple[str, Sequence[float]]], label: str) -> str:
    """A line for each series over each group of layers; values that are NaN are left out."""
    axis = vertical([value for _, values in series for value in values])
    column, width = _columns(len(labels))
    starts = {0, *labels.starts()}
    shapes = []
    for place, (title, values) in enumerate(series):
        points = [(n, axis(value)) for n, value in enumerate(values) if math.isfinite(value)]
        first = {next((n for n, _ in points if n >= start), -1) for start in starts}
        path = "".join(f"{'M' if n in first else 'L'}{column(n)} {y}" for n, y in points)
        dots = "".join(f"M{column(n)} {y}h0" for n, y in points) if width >= _NARROW else ""
        shapes.append(
            f'<g class="s{place}"><title>{escape(title)}</title>'
            f'<path class="line" d="{path}"/><path class="dots" d="{dots}"/></g>'
        )
    return _figure(label, _upright(axis) + _across(labels) + "".join(shapes))


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
    base = HEIGHT - BOTTOM
    ticks = ""
    for value in across.ticks():
        name = _short(value)
        ticks += _text(min(across(value), WIDTH - len(name) * LETTER / 2), base + 15, name)
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
    base = HEIGHT - BOTTOM
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
        note = _text(x - 4 if right else x + 4, TOP + 10, name, "end" if right else "start")
        shapes.append(f'<path class="mark" d="M{x} {TOP}V{base}"/>{note}')
    ticks = "".join(_text(across(value), base + 15, _short(value)) for value in across.ticks())
    return _figure(label, _upright(axis) + ticks + _axis_name(unit) + "".join(shapes))


def heat_map(
    levels: NDArray[np.int64],
    rows: Labels,
    columns: Labels,
    label: str,
    title: Callable[[int, int], str],
) -> str:
    """Cells by heat, [rows, columns] of 0..15, or -1 for nothing; the first row at the bottom.

    Args:
        rows, columns: their names, of which as many are written as there is room for.
        title: what is said of a cell (row, column).
    """
    before = max((len(name) * LETTER + 10 for name, _ in rows.groups), default=0)
    left, top = max(34, before + rows.longest + 8), 6
    width = (WIDTH - left - 4) / len(columns)
    height = width
    if len(rows) != len(columns):
        height = min(18.0, max(width, 14.0), max(_TALLEST / len(rows), 3.0))
    base = top + len(rows) * height

    def place_of(row: int, column: int) -> tuple[float, float]:
        return left + column * width, base - (row + 1) * height

    if levels.size <= _MAX_TITLES:
        cells = _cells_with_titles(levels, place_of, width, height, title)
    else:
        cells = _cells(levels, place_of, width, height)
    cuts = [f"M{left} {base - row * height:.1f}H{WIDTH - 4}" for row in rows.starts()]
    cuts += [f"M{left + column * width:.1f} {top}V{base}" for column in columns.starts()]
    shapes = [cells, f'<path class="cut" d="{"".join(cuts)}"/>' if cuts else ""]
    shapes += [
        _text(left - 5, base - (row + 0.5) * height + 4, rows.names[row], "end")
        for row in rows.shown(height, 11)
    ]
    shapes += [
        _text(before - 6, base - middle * height + 4, name, "end")
        for name, middle in rows.middles()
    ]
    if rows.axis and not rows.groups:
        name = _text(0, 0, rows.axis)
        shapes.append(f'<g transform="translate(9 {(top + base) / 2:.1f}) rotate(-90)">{name}</g>')
    shapes.append(_below(columns, left, width, base))
    return _figure(label, "".join(shapes), math.ceil(base + 34))


def _cells_with_titles(
    levels: NDArray[np.int64],
    place_of: Callable[[int, int], tuple[float, float]],
    width: float,
    height: float,
    title: Callable[[int, int], str],
) -> str:
    cells = []
    for row, column in np.argwhere(levels >= 0).tolist():
        x, y = place_of(row, column)
        cells.append(
            f'<rect class="h{LEVELS[levels[row, column]]}" x="{x:.1f}" y="{y:.1f}" '
            f'width="{width - 0.4:.1f}" height="{height - 0.4:.1f}">'
            f"<title>{escape(title(row, column))}</title></rect>"
        )
    return "".join(cells)


def _cells(
    levels: NDArray[np.int64],
    place_of: Callable[[int, int], tuple[float, float]],
    width: float,
    height: float,
) -> str:
    """One shape for each level, which is quick to draw where there are thousands of cells."""
    gap = 0.4 if min(width, height) >= _NARROW else 0.0
    paths = []
    for level, digit in enumerate(LEVELS):
        squares = "".join(
            f"M{x:.2f} {y:.2f}h{width - gap:.2f}v{height - gap:.2f}h{gap - width:.2f}z"
            for x, y in (place_of(*each) for each in np.argwhere(levels == level).tolist())
        )
        if squares:
            paths.append(f'<path class="h{digit}" d="{squares}"/>')
    return f'<g shape-rendering="crispEdges">{"".join(paths)}</g>'


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
    width = (WIDTH - LEFT - RIGHT) / count
    return lambda place: round(LEFT + (place + 0.5) * width, 1), width


def _across(labels: Labels) -> str:
    """The names below columns of layers, and lines between their groups."""
    _, width = _columns(len(labels))
    base = HEIGHT - BOTTOM
    cuts = "".join(f"M{LEFT + start * width:.1f} {TOP}V{base}" for start in labels.starts())
    between = f'<path class="rule" d="{cuts}"/>' if cuts else ""
    return between + _below(labels, LEFT, width, base)


def _below(labels: Labels, left: float, width: float, base: float) -> str:
    """The names below columns, and of their groups or of the axis below these."""
    texts = []
    for place in labels.shown(width, labels.longest + 8):
        name = labels.names[place]
        x = min(left + (place + 0.5) * width, WIDTH - len(name) * LETTER / 2)
        texts.append(_text(x, base + 15, name))
    for name, middle in labels.middles():
        texts.append(_text(left + middle * width, base + 30, name))
    if labels.axis and not labels.groups:
        texts.append(_text(left + len(labels) * width / 2, base + 30, labels.axis))
    return "".join(texts)


def _axis_name(name: str) -> str:
    return _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, name)


def _upright(axis: Axis) -> str:
    return "".join(
        f'<path class="rule" d="M{LEFT} {axis(value)}H{WIDTH - RIGHT}"/>'
        + _text(LEFT - 6, axis(value) + 4, _short(value), "end")
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
