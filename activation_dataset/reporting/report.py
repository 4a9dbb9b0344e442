"""Report on a dataset: one self-contained HTML page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from html import escape

import numpy as np
from numpy.typing import NDArray

from activation_dataset.metadata import Metadata
from activation_dataset.prompts import UNKNOWN_CELL
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reporting import charts
from activation_dataset.reporting.grid_figure import grid_figure, samples_with_grids
from activation_dataset.reporting.page import Section, page
from activation_dataset.reporting.summary import (
    MASSIVE_FACTOR,
    OUTLIER_FACTORS,
    Table,
    count_of,
    facts,
    layer_table,
    massive_dimensions,
    number,
    quantiles,
    shares,
    size,
    widths_named,
)
from activation_dataset.reporting.survey import Survey
from activation_dataset.sites import Site, basis_of, by_hook_point, place_of, site_labels

# First position of each bin of positions, with four bins between two powers of two.
_BIN_STARTS: NDArray[np.int64] = np.unique((2 ** (np.arange(84) / 4)).astype(np.int64) - 1)
_OUTLIERS_SHOWN = 12
_DIMENSIONS_SHOWN = 8
_INPUTS_SHOWN = 20


def report(dataset: ActivationDataset, found: Survey) -> str:
    """Return the HTML of the page, a pure function of the dataset and the survey."""
    metadata = dataset.metadata
    run = metadata.run
    weights = " with random weights" if run.weights.get("random") else ""
    whole = len(found.numbers) == metadata.total_vectors
    read = "all vectors" if whole else f"{len(found.numbers):,} vectors of each layer"
    sections = [
        _norms(metadata),
        _lengths(found),
        *_positions(run.sites, found),
        _outliers(dataset, found),
        _massive(metadata),
        *_likeness(metadata, found),
        _grids(dataset, found),
        Section(
            "Layers",
            "Euclidean norms of all vectors. Quantiles and the bounds for outliers have a relative "
            "error of at most 1/64.",
            layer_table(metadata).html(),
            wide=True,
        ),
    ]
    return page(
        os.path.basename(os.path.normpath(dataset.path)) or dataset.path,
        f"Activations of {run.model_name}{weights}",
        [each for each in facts(metadata) if each[0] != "model"],
        sections,
        f"The report read {read}, from {count_of(found.shards, 'shard')}. The norms by layer, the "
        "massive dimensions and the table of layers cover all vectors.",
        _details(metadata),
    )


def _by_hook_point(sites: Sequence[Site], draw: Callable[[list[int], list[str]], str]) -> str:
    """Return a chart for each hook point, drawn from site numbers and layer names."""
    html = ""
    for hook_point, numbers in by_hook_point(sites, range(len(sites))).items():
        html += f"<h3>{hook_point}</h3>" if hook_point else ""
        html += draw(numbers, [str(place_of(sites[each])[0]) for each in numbers])
    return html


def _norms(metadata: Metadata) -> Section:
    values = [
        [*quantiles(each, 0.01, 0.25, 0.5, 0.75, 0.99), each.mean_norm, each.max_norm]
        if each.count
        else [math.nan] * 7
        for each in metadata.statistics.values()
    ]
    html = _by_hook_point(
        metadata.run.sites,
        lambda sites, layers: charts.boxes(
            layers, [values[each] for each in sites], "norms by layer", "layer"
        ),
    )
    shown = ("median, quartiles, 1 to 99 %", "mean", "maximum")
    html += charts.key(shown, ("kbox", "kmean", "ktop"))
    return Section("Norms by layer", "Norms of all vectors, on a logarithmic scale.", html)


def _lengths(found: Survey) -> Section:
    lengths = found.lengths
    if not len(lengths):
        return Section("Prompt lengths", "The dataset has no prompts.", "")
    p5, median, p95 = np.quantile(lengths, [0.05, 0.5, 0.95], method="nearest").tolist()
    text = (
        f"{count_of(len(lengths), 'prompt')} of {lengths.min():,} to {lengths.max():,} tokens, "
        f"90 % between {p5:,} and {p95:,}. {found.repeated:,} repeat the tokens of an earlier "
        "prompt."
    )
    marks = {"median": median, "95 %": p95} if len(lengths) >= 20 else {"median": median}
    chart = charts.histogram(lengths, "prompts by length", "tokens", marks)
    return Section("Prompt lengths", text, chart)


def _positions(sites: Sequence[Site], found: Survey) -> Iterator[Section]:
    bins = np.searchsorted(_BIN_STARTS, found.places.positions, side="right") - 1
    means = found.mean_factors(bins, len(_BIN_STARTS))
    used = np.flatnonzero(np.isfinite(means).any(axis=0))
    if not len(used):
        return
    shown = slice(int(used[0]), int(used[-1]) + 1)
    starts = [str(start) for start in _BIN_STARTS[shown]]
    logs = np.log2(np.maximum(means[:, shown], 1e-9))
    low, high = np.nanquantile(logs, [0.005, 0.995]).tolist()
    html = _by_hook_point(
        sites,
        lambda sites, layers: charts.heat_map(
            logs[sites],
            (layers, starts),
            ("layer", "position from"),
            "mean norm by position and layer",
            (min(low, -0.25), max(high, 0.25)),
            lambda log: f"{number(2**log)} medians",
        ),
    )
    text = "Mean norm at each position of the prompt, in multiples of the layer's median norm."
    yield Section("Norms by position", text, html)


def _outliers(dataset: ActivationDataset, found: Survey) -> Section:
    few = OUTLIER_FACTORS[0]
    names = site_labels(dataset.sites)
    factors = np.nan_to_num(found.factors)
    worst = factors.max(axis=0)
    largest = np.argsort(-worst, kind="stable")[:_OUTLIERS_SHOWN]
    rows = [
        (
            f"{number(worst[each])} x",
            names[factors[:, each].argmax()],
            str(dataset.trace(int(found.numbers[each]))),
        )
        for each in largest.tolist()
        if worst[each] >= few
    ]
    if not rows:
        text = f"No vector that was read has at least {few} times the median norm of its layer."
        return Section("Outliers", text, "")
    text = (
        "Vectors with the largest norms, in multiples of the median norm of the layer where they "
        f"are largest. The table of layers counts all vectors with at least {few} times the "
        "median. The dataset contains all of these vectors; readers can filter by norm."
    )
    table = Table(("norm", "layer", "where"), {"": rows})
    return Section("Outliers", text, table.html("left"))


def _massive(metadata: Metadata) -> Section:
    massive = massive_dimensions(metadata)[:_DIMENSIONS_SHOWN]
    bound = f"at least {MASSIVE_FACTOR} times the median root mean square"
    if not massive:
        return Section("Massive dimensions", f"No dimension has {bound} of its layer.", "")
    found = list(metadata.statistics.items())

    def draw(sites: list[int], layers: list[str]) -> str:
        basis = basis_of(found[sites[0]][0])
        dimensions = [each for each, at, _ in massive if basis_of(at[0]) == basis][::-1]
        if not dimensions:
            return "<p>None.</p>"
        return charts.heat_map(
            np.array([shares(found[each][1])[dimensions] for each in sites]).T,
            ([str(each) for each in dimensions], layers),
            ("", "layer"),
            "share of the squared norm by dimension and layer",
            (0, massive[0][2]),
            "{:.1%}".format,
        )

    html = _by_hook_point(metadata.run.sites, draw)
    text = f"Dimensions with {bound}: share of the mean squared norm in each layer."
    return Section("Massive dimensions", text, html)


def _likeness(metadata: Metadata, found: Survey) -> Iterator[Section]:
    likeness, run = found.likeness, metadata.run
    if likeness is None:
        yield Section("Similarity of layers", "Only one layer, or too few vectors to compare.", "")
        return
    alike = likeness.alignment
    html = _by_hook_point(
        run.sites,
        lambda sites, layers: charts.heat_map(
            alike[np.ix_(sites, sites)],
            (layers, layers),
            ("layer", "layer"),
            "similarity of layers",
            (min(0.98, float(alike.min())), 1),
            "{:.2f}".format,
        ),
    )
    compared = count_of(likeness.vectors, "vector")
    text = f"Linear centered kernel alignment (CKA, unbiased) on {compared}, without outliers."
    yield Section("Similarity of layers", text, html)
    series = list(by_hook_point(run.sites, likeness.dimensions.tolist()).items())
    html = charts.curves(run.layers_extracted, series, "effective dimensions by layer", "layer")
    text = (
        "Participation ratio of the variance: the number of equal, independent directions with the "
        f"same spread, out of {widths_named(run).removesuffix(' wide')}."
    )
    names = [name for name, _ in series if name]
    yield Section("Effective dimensions", text, html + charts.key(names))


def _grids(dataset: ActivationDataset, found: Survey) -> Section:
    spans = samples_with_grids(found.places) if dataset.metadata.run.pooling == "none" else []
    unknown = found.places.samples[found.places.cells[:, 1] == UNKNOWN_CELL]
    if spans:
        text = "Each cell has its color. The square in its middle shows the norm of its token."
    elif dataset.metadata.run.pooling == "none" and len(unknown):
        text = (
            "Nothing to draw: the tokenizer does not have one token for each cell, so the cells of "
            "prompts are unknown."
        )
    elif dataset.metadata.run.pooling == "none":
        text = "Nothing to draw: no prompt that was read has grids of a suitable size."
    else:
        text = "Nothing to draw: the dataset has one vector for each prompt."
    if spans and len(unknown):
        text += (
            f" Left out: {count_of(len(np.unique(unknown)), 'prompt')} whose cells could not be "
            "mapped to tokens one to one."
        )
    if (tokens := dataset.metadata.run.settings.get("tokens", "all")) != "all":
        text += f" The drawings show only the chosen tokens: {tokens}."
    html = ""
    for span in spans:
        places = dataset.locate(found.numbers[span])
        sample_id = dataset.sample_id(int(places.samples[0]))
        names = site_labels(dataset.sites)
        html += grid_figure(sample_id, places, found.factors[:, span], names, dataset.metadata.run)
    return Section("Norms over the grids", text, html, wide=True)


def _details(metadata: Metadata) -> str:
    """Return HTML with the description of the run and its first input files."""
    inputs = [f"{each.path} ({size(each.bytes)})" for each in metadata.run.inputs]
    if len(inputs) > _INPUTS_SHOWN:
        inputs[_INPUTS_SHOWN:] = [f"and {len(inputs) - _INPUTS_SHOWN:,} more"]
    text = json.dumps(asdict(metadata.run) | {"inputs": inputs}, indent=2, ensure_ascii=False)
    return f"<details><summary>Run description</summary><pre>{escape(text)}</pre></details>"
