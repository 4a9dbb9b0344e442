"""The grids of a prompt in ARC's colours, each cell with the norm of its token's vector in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from activation_dataset.prompts import ROLES, TEST_PAIR
from activation_dataset.reporting.charts import LEVELS, heat
from activation_dataset.reporting.summary import OUTLIER_FACTORS, number
from activation_dataset.reporting.survey import GridNorms

OUTSIDE = "x"
"""Stands for a norm of ten medians or more, as a level of heat."""

NOTHING = "-"
"""Stands for a cell in which nothing is drawn, as a level of heat."""

FIRST_DIGIT = 15
"""Token id of "0" in every byte-level BPE vocabulary that begins as GPT-2's, with the printable
bytes in order, as Qwen's does. The other digits follow."""

NO_COLOUR = 10


def colours_of(token_ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """[n] colours 0..9 of the cells that tokens show, or NO_COLOUR where a token is no digit."""
    colours = token_ids.astype(np.int64) - FIRST_DIGIT
    return np.where((colours >= 0) & (colours < NO_COLOUR), colours, NO_COLOUR)


def grid_figure(grid: GridNorms, layers: Sequence[str], medians: Sequence[float]) -> str:
    """The prompt's pairs of grids, and a slider for the layer.

    The page's script writes other levels into the cells when the slider moves; without it, the last
    layer is shown.

    Args:
        layers: their names.
        medians: their median norms, by which outliers are known.
    """
    cells = _in_order_of_drawing(grid.places.cells)
    levels, ends = [], []
    for norms, median in zip(grid.norms[:, cells], medians, strict=True):
        outside = norms >= OUTLIER_FACTORS[0] * median
        usual = norms[~outside]
        low, high = np.quantile(usual, [0.02, 0.98]).tolist() if len(usual) else (0.0, 1.0)
        digits = [LEVELS[level] for level in heat(norms, low, high).tolist()]
        levels.append(
            "".join(OUTSIDE if out else d for d, out in zip(digits, outside.tolist(), strict=True))
        )
        ends.append([number(low), number(high)])
    data = json.dumps({"layers": list(layers), "levels": levels, "ends": ends})
    pairs = "".join(_pairs(grid, cells, levels[-1]))
    (low, high), last = ends[-1], len(layers) - 1
    ramp = "".join(f'<i class="h{level}"></i>' for level in LEVELS)
    width = max(map(len, layers))
    return (
        f'<figure class="grids" data-norms="{escape(data)}">'
        f"<figcaption>{escape(grid.sample_id)}</figcaption>"
        f'<p class="slider" hidden><label>layer <output style="min-width: {width}ch">'
        f"{layers[-1]}</output>"
        f'<input type="range" min="0" max="{last}" value="{last}"></label></p>'
        f'<p class="ramp"><span class="low">{low}</span><b>{ramp}</b>'
        f'<span class="high">{high}</span>'
        f'<i class="h{OUTSIDE}"></i><span>10 medians or more</span></p>'
        f'<div class="pairs">{pairs}</div></figure>'
    )


def _in_order_of_drawing(cells: NDArray[np.int16]) -> NDArray[np.int64]:
    """Which of [n, 4] tokens show cells: by example, the test last, and by role."""
    examples = np.where(cells[:, 0] == TEST_PAIR, np.iinfo(np.int16).max, cells[:, 0])
    order = np.lexsort((cells[:, 1], examples))
    drawn: NDArray[np.int64] = order[cells[order, 1] >= 0]
    return drawn


def _pairs(grid: GridNorms, cells: NDArray[np.int64], levels: str) -> Iterator[str]:
    """The examples in their order, then the test."""
    where = grid.places.cells[cells].astype(np.int64)
    colours = colours_of(grid.places.token_ids[cells])
    for example in dict.fromkeys(where[:, 0].tolist()):
        parts = []
        for role in range(len(ROLES)):
            chosen = np.flatnonzero((where[:, 0] == example) & (where[:, 1] == role))
            if len(chosen):
                shown = "".join(levels[n] for n in chosen.tolist())
                parts.append(grid_drawing(where[chosen, 2:], colours[chosen], shown))
        name = "test" if example == TEST_PAIR else f"example {example}"
        yield f'<div class="pair"><span>{name}</span>{"<em>→</em>".join(parts)}</div>'


def grid_drawing(places: NDArray[np.int64], colours: NDArray[np.int64], levels: str) -> str:
    """One grid, of [n] cells at places [n, 2] (row, column), in their colours [n].

    In the middle of each cell is its level of heat, or nothing where that is NOTHING.
    """
    height, width = (places.max(axis=0) + 1).tolist()
    fields = []
    for colour in np.unique(colours).tolist():
        squares = "".join(f"M{x} {y}h1v1h-1z" for y, x in places[colours == colour].tolist())
        fields.append(f'<path class="c{colour}" d="{squares}"/>')
    norms = "".join(
        f'<rect class="h{level}" x="{x}.22" y="{y}.22" width=".56" height=".56"/>'
        for level, (y, x) in zip(levels, places.tolist(), strict=True)
        if level != NOTHING
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" style="--w:{width}" role="img" '
        f'aria-label="a grid of {height} rows and {width} columns">{"".join(fields)}{norms}</svg>'
    )
