"""Charts as SVG text. The CSS classes of the page (`report.html`) set the colors.

Each chart has a label for screen readers. This module escapes labels and all text from data.
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
"""Color levels of a heat map, from low to high."""

Series = tuple[str, Sequence[float]]
"""Name and finite values of a line."""

_BASE = HEIGHT - BOTTOM
_TALLEST = 300


def boxes(names: Sequence[str], values: Sequence[Sequence[float]], label: str, axis: str) -> str:
    """Draw a box plot with a logarithmic scale.

    Args:
        names: name of each box.
        values: for each box, the quantiles 0.01, 0.25, 0.5, 0.75 and 0.99, the mean and the
            maximum; NaN for a place without a box.
        label: label for screen readers.
        axis: name of the horizontal axis.
    """
    scale = vertical([value for each in values for value in each], log=True)
    width = (WIDTH - LEFT - RIGHT) / len(names)
    half, reach = min(width * 0.32, 9), min(width * 0.5, 3)
    diamond = f"l{reach:.1f} -{reach:.1f} {reach:.1f} {reach:.1f} -{reach:.1f} {reach:.1f}z"
    shapes = _left(scale) + _names_below(names, axis, LEFT, width, _BASE)
    for place, (name, each) in enumerate(zip(names, values, strict=True)):
        if math.isnan(each[0]):
            continue
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
    steps: Sequence[int], series: Sequence[Series], label: str, unit: str, log: bool = False
) -> str:
    """Draw a line for each series.

    Args:
        steps: ascending horizontal positions.
        series: name and values of each line.
        label: label for screen readers.
        unit: unit of the steps.
        log: True for a logarithmic vertical axis, which needs positive values.
    """
    axis = vertical([value for _, values in series for value in values], log)
    across = horizontal(steps[0], steps[-1], whole=True)
    shapes = _left(axis) + _below(across, unit)
    for place, (name, values) in enumerate(series):
        points = zip(steps, values, strict=True)
        line = "M" + "L".join(f"{across(step)} {axis(value)}" for step, value in points)
        shapes += f'<g class="s{place}"><title>{escape(name)}</title>{_path("line", line)}</g>'
    return _figure(label, shapes)


def histogram(values: NDArray[np.int64], label: str, unit: str, marks: dict[str, float]) -> str:
    """Draw a histogram. The bins are logarithmic if the values span about a decade or more.

    Args:
        values: [n] int64, n at least 1.
        label: label for screen readers.
        unit: unit of the values.
        marks: named values to mark with vertical lines.
    """
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
    """Draw a heat map with its color key. The first row is at the bottom.

    Args:
        values: [rows, columns] float64, NaN for an empty cell.
        names: names of the rows and of the columns. Names without enough space are left out.
        axes: names of the vertical and the horizontal axis.
        label: label for screen readers.
        ends: values of the lowest and the highest level.
        say: function that formats a value for tooltips and the key.
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
    """Return the levels 0..15 of values between two ends. Values are clipped; NaN becomes 0."""
    shares = np.nan_to_num((values - low) / (high - low if high > low else 1.0))
    levels = (np.clip(shares, 0, 1) * len(LEVELS)).astype(np.int64)
    return np.minimum(levels, len(LEVELS) - 1)


def ramp(low: str, high: str, more: str = "") -> str:
    """Draw the color key of a heat map, with the values at its ends followed by more HTML."""
    cells = "".join(f'<i class="h{level}"></i>' for level in LEVELS)
    return (
        f'<p class="ramp"><span class="low">{escape(low)}</span><b>{cells}</b>'
        f'<span class="high">{escape(high)}</span>{more}</p>'
    )


SERIES = tuple(f"s{number}" for number in range(len(HOOK_POINTS)))
"""CSS classes of lines, one for each hook point."""


def key(names: Sequence[str], classes: Sequence[str] = SERIES) -> str:
    """Draw the color key of series or other shapes."""
    pairs = zip(names, classes, strict=False)
    items = "".join(f'<span><i class="{css}"></i>{escape(name)}</span>' for name, css in pairs)
    return f'<p class="key">{items}</p>'


def _names_below(names: Sequence[str], axis: str, left: float, width: float, base: float) -> str:
    """Draw as many names below columns as fit, and the name of the axis below the names."""
    needed = max(map(len, names)) * LETTER + 8
    texts = _text(left + len(names) * width / 2, base + 30, axis)
    for place in range(0, len(names), math.ceil(needed / width)):
        texts += _text(_inside(left + (place + 0.5) * width, names[place]), base + 15, names[place])
    return texts


def _below(axis: Axis, unit: str) -> str:
    """Draw the ticks and name of a horizontal axis."""
    ticks = [(axis(value), _short(value)) for value in axis.ticks()]
    texts = [_text(_inside(x, name), _BASE + 15, name) for x, name in ticks]
    return "".join(texts) + _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, unit)


def _left(axis: Axis) -> str:
    """Draw the ticks of a vertical axis, with grid lines across the chart."""
    return "".join(
        _path("rule", f"M{LEFT} {axis(value)}H{WIDTH - RIGHT}")
        + _text(LEFT - 6, axis(value) + 4, _short(value), "end")
        for value in axis.ticks()
    )


def _inside(x: float, name: str) -> float:
    """Return the middle of a text, moved left if the text would extend past the chart."""
    return min(x, WIDTH - len(name) * LETTER / 2)


def _short(value: float) -> str:
    """Format the value of a tick with few characters."""
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
