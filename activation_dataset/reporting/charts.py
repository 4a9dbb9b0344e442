"""Charts as SVG text, colored by CSS classes of the page (`report.html`).

Labels, which screen readers say, and all other text from data are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from typing import Any

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
    horizontal,
    vertical,
)
from activation_dataset.sites import HOOK_POINTS

LEVELS = "0123456789abcdef"
"""Levels of a heat map, from low to high."""

Series = tuple[str, Sequence[float]]
"""Name and finite values of a line."""

_BASE = HEIGHT - BOTTOM
_TALLEST = 300


def boxes(names: Sequence[str], values: Sequence[Sequence[float]], label: str, axis: str) -> str:
    """Box plot with a logarithmic scale, and the name of the horizontal axis.

    The values of a box are the quantiles 0.01, 0.25, 0.5, 0.75 and 0.99, the mean and the maximum.
    """
    scale = vertical([value for each in values for value in each], log=True)
    width = (WIDTH - LEFT - RIGHT) / len(names)
    half, reach = min(width * 0.32, 9), min(width * 0.5, 3)
    diamond = f"l{reach:.1f} -{reach:.1f} {reach:.1f} {reach:.1f} -{reach:.1f} {reach:.1f}z"
    shapes = _left(scale) + _names_below(names, axis, LEFT, width, _BASE)
    for place, (name, each) in enumerate(zip(names, values, strict=True)):
        x = LEFT + (place + 0.5) * width
        low, lower, middle, upper, high, mean, top = (scale(max(v, scale.low)) for v in each)
        tooltip = f"{axis} {name}: median {each[2]:.4g}, mean {each[5]:.4g}, max {each[6]:.4g}"
        shapes += f"<g><title>{escape(tooltip)}</title>"
        shapes += _path("whisker", f"M{x:.1f} {low}V{high}")
        shapes += _rect("box", x - half, upper, 2 * half, max(lower - upper, 1))
        shapes += _path("median", f"M{x - half:.1f} {middle}h{2 * half:.1f}")
        shapes += f'<circle class="mean" cx="{x:.1f}" cy="{mean}" r="{min(width * 0.4, 2.2):.1f}"/>'
        shapes += _path("top", f"M{x - reach:.1f} {top}{diamond}") + "</g>"
    return _figure(label, shapes)


def curves(
    steps: Sequence[float], series: Sequence[Series], label: str, unit: str, log: bool = False
) -> str:
    """Line for each series over ascending `steps`, counted in a unit.

    A logarithmic vertical axis takes positive values only.
    """
    axis = vertical([value for _, values in series for value in values], log)
    across = horizontal(steps[0], steps[-1])
    shapes = _left(axis) + _below(across, unit)
    for place, (name, values) in enumerate(series):
        points = zip(steps, values, strict=True)
        line = "M" + "L".join(f"{across(step)} {axis(value)}" for step, value in points)
        shapes += f'<g class="s{place}"><title>{escape(name)}</title>{_path("line", line)}</g>'
    return _figure(label, shapes)


def histogram(values: NDArray[np.int64], label: str, unit: str, marks: dict[str, float]) -> str:
    """Histogram of [n] values, n at least 1; logarithmic if they span about a decade or more."""
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high / low > 8
    bins = int(min(40, max(8, math.sqrt(len(values)) * 1.5)))
    edges = (np.geomspace if log else np.linspace)(low, high + 1, bins + 1)
    counts = np.histogram(values, edges)[0].tolist()
    across = horizontal(float(edges[0]), float(edges[-1]), log)
    axis = vertical([*counts, 4], zero=True)
    shapes = _left(axis) + _below(across, unit)
    for count, (first, last) in zip(counts, pairwise(edges.tolist()), strict=True):
        if count:
            x, width = across(first) + 0.5, max(across(last) - across(first) - 1, 0.8)
            tooltip = f"{first:,.0f} to {last - 1:,.0f} {unit}: {count:,}"
            shapes += _rect("bar", x, axis(count), width, _BASE - axis(count), tooltip)
    for name, value in marks.items():
        x = across(min(max(value, across.low), across.high))
        end, anchor = (x - 4, "end") if x > WIDTH * 0.8 else (x + 4, "start")
        shapes += _path("mark", f"M{x} {TOP}V{_BASE}") + _text(end, TOP + 10, name, anchor)
    return _figure(label, shapes)


def heat_map(
    values: NDArray[np.float64],
    names: tuple[Sequence[str], Sequence[str]],
    axes: tuple[str, str],
    label: str,
    ends: tuple[float, float],
    say: Callable[[float], str],
) -> str:
    """Grid of cells colored by heat, and the key to its colors; the first row is at the bottom.

    Args:
        values: [rows, columns] float64, NaN for no cell.
        names: names of the rows and of the columns; as many are written as there is room for.
        axes: names of the vertical and the horizontal axis.
        ends: values of the lowest and the highest level.
        say: text for a value, in tooltips and in the key.
    """
    rows, columns = names
    left, top = max(34, max(map(len, rows)) * LETTER + 22), 6
    width = (WIDTH - left - 4) / len(columns)
    height = width
    if len(rows) != len(columns):
        height = min(18.0, max(width, 14.0), max(_TALLEST / len(rows), 3.0))
    base = top + len(rows) * height
    gap = 0.4 if min(width, height) > 3 else 0.0
    levels = heat(values, *ends)
    shapes = _names_below(columns, axes[1], left, width, base)
    for row, column in np.argwhere(np.isfinite(values)).tolist():
        x, y = left + column * width, base - (row + 1) * height
        tooltip = f"{rows[row]}, {columns[column]}: {say(values[row, column])}"
        shapes += _rect(f"h{LEVELS[levels[row, column]]}", x, y, width - gap, height - gap, tooltip)
    for row in range(0, len(rows), math.ceil(11 / height)):
        shapes += _text(left - 5, base - (row + 0.5) * height + 4, rows[row], "end")
    turned = f"translate(9 {(top + base) / 2:.1f}) rotate(-90)"
    shapes += f'<g transform="{turned}">{_text(0, 0, axes[0])}</g>'
    return _figure(label, shapes, math.ceil(base + 34)) + ramp(say(ends[0]), say(ends[1]))


def heat(values: NDArray[Any], low: float, high: float) -> NDArray[np.int64]:
    """Levels 0..15 of values between two ends; values beyond an end get its level, NaN gets 0."""
    shares = np.nan_to_num((values - low) / (high - low if high > low else 1.0))
    levels = (np.clip(shares, 0, 1) * len(LEVELS)).astype(np.int64)
    return np.minimum(levels, len(LEVELS) - 1)


def ramp(low: str, high: str, more: str = "") -> str:
    """Key to the colors of a heat map, with the values at its ends and more HTML after them."""
    cells = "".join(f'<i class="h{level}"></i>' for level in LEVELS)
    return (
        f'<p class="ramp"><span class="low">{escape(low)}</span><b>{cells}</b>'
        f'<span class="high">{escape(high)}</span>{more}</p>'
    )


SERIES = tuple(f"s{number}" for number in range(len(HOOK_POINTS)))
"""Classes of lines, one for each hook point; the page gives them colors."""


def key(names: Sequence[str], classes: Sequence[str] = SERIES) -> str:
    """Key to the colors of series, or of other shapes."""
    pairs = zip(names, classes, strict=False)
    items = "".join(f'<span><i class="{css}"></i>{escape(name)}</span>' for name, css in pairs)
    return f'<p class="key">{items}</p>'


def _names_below(names: Sequence[str], axis: str, left: float, width: float, base: float) -> str:
    """Names below columns, as many as there is room for, and below them that of the axis."""
    needed = max(map(len, names)) * LETTER + 8
    texts = _text(left + len(names) * width / 2, base + 30, axis)
    for place in range(0, len(names), math.ceil(needed / width)):
        texts += _text(_inside(left + (place + 0.5) * width, names[place]), base + 15, names[place])
    return texts


def _below(axis: Axis, unit: str) -> str:
    """Ticks and name of a horizontal axis."""
    ticks = [(axis(value), _short(value)) for value in axis.ticks()]
    texts = [_text(_inside(x, name), _BASE + 15, name) for x, name in ticks]
    return "".join(texts) + _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, unit)


def _left(axis: Axis) -> str:
    """Ticks of a vertical axis, with rules across the chart."""
    return "".join(
        _path("rule", f"M{LEFT} {axis(value)}H{WIDTH - RIGHT}")
        + _text(LEFT - 6, axis(value) + 4, _short(value), "end")
        for value in axis.ticks()
    )


def _inside(x: float, name: str) -> float:
    """Middle of a text, moved left where it would leave the chart."""
    return min(x, WIDTH - len(name) * LETTER / 2)


def _short(value: float) -> str:
    """Value of a tick in few characters."""
    for limit, factor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / factor:g}{unit}"
    return f"{value:.10g}" if abs(value) < 1e-3 else f"{value:.6g}"


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _path(css: str, d: str) -> str:
    return f'<path class="{css}" d="{d}"/>'


def _rect(css: str, x: float, y: float, width: float, height: float, tooltip: str = "") -> str:
    title = f"<title>{escape(tooltip)}</title>" if tooltip else ""
    return (
        f'<rect class="{css}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}">'
        f"{title}</rect>"
    )


def _figure(label: str, shapes: str, height: int = HEIGHT) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(label)}">{shapes}</svg>'
    )
