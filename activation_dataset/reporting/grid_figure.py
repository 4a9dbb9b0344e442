"""Drawings of the grids of a prompt in ARC's colors, with the norm of each token in its cell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from activation_dataset.fields import from_json
from activation_dataset.metadata import RunDescription
from activation_dataset.prompts import ROLES, TEST_PAIR
from activation_dataset.reading.shards import Places
from activation_dataset.reporting.charts import LEVELS, heat, ramp
from activation_dataset.reporting.summary import OUTLIER_FACTORS, number

OUTSIDE = "x"
"""Level of an outlier."""

NOTHING = "-"
"""Level of a cell without a square."""

NO_COLOR = 10

_LAST = np.iinfo(np.int16).max
_GRIDS_SHOWN = 2
_LEAST_CELLS, _MOST_CELLS = 40, 900


def colors_of(token_ids: NDArray[np.int32], run: RunDescription) -> NDArray[np.int64]:
    """Return the colors 0..9 that tokens show, [n] int64, NO_COLOR for a token without a digit."""
    digits = run.tokenizer.get("digits", [])
    colors = np.full(len(token_ids), NO_COLOR, np.int64)
    for color, ids in enumerate(from_json(tuple[tuple[int, ...], ...], digits, "tokenizer.digits")):
        colors[np.isin(token_ids, ids)] = color
    return colors


def samples_with_grids(places: Places) -> list[slice]:
    """Return the vectors of the first samples whose number of cells is suitable for a drawing."""
    _, starts, counts = np.unique(places.samples, return_index=True, return_counts=True)
    shows_cell = (places.cells[:, 1] >= 0).astype(np.int64)
    cells = np.add.reduceat(shows_cell, starts) if len(starts) else starts
    chosen = np.flatnonzero((cells >= _LEAST_CELLS) & (cells <= _MOST_CELLS))[:_GRIDS_SHOWN]
    return [slice(int(starts[each]), int(starts[each] + counts[each])) for each in chosen]


def grid_figure(
    sample_id: str,
    places: Places,
    norms: NDArray[np.floating],
    names: Sequence[str],
    run: RunDescription,
) -> str:
    """Draw the pairs of grids of a prompt, with a slider for the layer.

    When the slider moves, the script of the page updates the levels of the cells. Without the
    script, the figure shows the last layer.

    Args:
        sample_id: caption of the figure.
        places: places of the prompt's tokens.
        norms: [sites, tokens], norms in medians of the site, NaN for a non-finite vector.
        names: names of the sites.
        run: description of the run; its tokenizer has the token ids of the digits.
    """
    examples = np.where(places.cells[:, 0] == TEST_PAIR, _LAST, places.cells[:, 0])
    order = np.lexsort((places.cells[:, 1], examples))
    cells = order[places.cells[order, 1] >= 0]
    levels, ends = [], []
    for row in np.nan_to_num(norms[:, cells]):
        outside = row >= OUTLIER_FACTORS[0]
        usual = row[~outside]
        low, high = np.quantile(usual, [0.02, 0.98]).tolist() if len(usual) else (0.0, 1.0)
        digits = [LEVELS[level] for level in heat(row, low, high).tolist()]
        levels.append("".join(np.where(outside, OUTSIDE, digits).tolist()))
        ends.append((f"{number(low)} medians", f"{number(high)} medians"))
    data = json.dumps({"layers": list(names), "levels": levels, "ends": ends})
    last = len(names) - 1
    colors = colors_of(places.token_ids[cells], run)
    pairs = _pairs(places.cells[cells].astype(np.int64), colors, levels[-1])
    key = ramp(*ends[-1], f'<i class="h{OUTSIDE}"></i><span>10 medians or more</span>')
    return (
        f'<figure class="grids" data-norms="{escape(data)}">'
        f"<figcaption>{escape(sample_id)}</figcaption>"
        '<p class="slider" hidden><label>layer '
        f'<output style="min-width: {max(map(len, names))}ch">{names[-1]}</output>'
        f'<input type="range" min="0" max="{last}" value="{last}"></label></p>'
        f'{key}<div class="pairs">{"".join(pairs)}</div></figure>'
    )


def _pairs(where: NDArray[np.int64], colors: NDArray[np.int64], levels: str) -> Iterator[str]:
    """Yield drawings of the examples, given their cells [n, 4] and colors [n] in order."""
    for example in dict.fromkeys(where[:, 0].tolist()):
        parts = []
        for role in range(len(ROLES)):
            chosen = np.flatnonzero((where[:, 0] == example) & (where[:, 1] == role))
            if len(chosen):
                shown = "".join(levels[n] for n in chosen.tolist())
                parts.append(grid_drawing(where[chosen, 2:], colors[chosen], shown))
        name = "test" if example == TEST_PAIR else f"example {example}"
        yield f'<div class="pair"><span>{name}</span>{"<em>→</em>".join(parts)}</div>'


def grid_drawing(places: NDArray[np.int64], colors: NDArray[np.int64], levels: str) -> str:
    """Draw one grid of n cells.

    Args:
        places: [n, 2] int64, row and column of each cell.
        colors: [n] int64, see `colors_of`.
        levels: for each cell, the level of the square in its middle, or NOTHING.
    """
    height, width = (places.max(axis=0) + 1).tolist()
    fields = []
    for color in np.unique(colors).tolist():
        squares = "".join(f"M{x} {y}h1v1h-1z" for y, x in places[colors == color].tolist())
        fields.append(f'<path class="c{color}" d="{squares}"/>')
    norms = "".join(
        f'<rect class="h{level}" x="{x}.22" y="{y}.22" width=".56" height=".56"/>'
        for level, (y, x) in zip(levels, places.tolist(), strict=True)
        if level != NOTHING
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" style="--w:{width}" role="img" '
        f'aria-label="grid of {height} rows and {width} columns">{"".join(fields)}{norms}</svg>'
    )
