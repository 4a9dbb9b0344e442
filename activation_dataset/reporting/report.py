"""Report on a dataset: one page of HTML that needs no other file and no network."""

from __future__ import annotations

import json
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

# First position of each bin of positions. There are four from a power of two to the next.
_BIN_STARTS: NDArray[np.int64] = np.unique((2 ** (np.arange(84) / 4)).astype(np.int64) - 1)
_OUTLIERS_SHOWN = 12
_DIMENSIONS_SHOWN = 8
_INPUTS_SHOWN = 20


def report(dataset: ActivationDataset, found: Survey) -> str:
    """HTML of the page, which is a function of the dataset and of the findings."""
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
            "Norms of all vectors, Euclidean. Quantiles, and the bounds by which outliers are "
            "counted, are known to within 1/64.",
            layer_table(metadata).html(),
            wide=True,
        ),
    ]
    return page(
        os.path.basename(os.path.normpath(dataset.path)) or dataset.path,
        f"Activations of {run.model_name}{weights}",
        [each for each in facts(metadata) if each[0] != "model"],
        sections,
        f"The report read {read}, of {count_of(found.shards, 'shard')}; the norms by layer, the "
        "massive dimensions and the table are of all vectors.",
        _details(metadata),
    )


def _by_hook_point(sites: Sequence[Site], draw: Callable[[list[int], list[str]], str]) -> str:
    """Chart of each hook point, drawn from the numbers of its sites and the names of the layers."""
    html = ""
    for hook_point, numbers in by_hook_point(sites, range(len(sites))).items():
        html += f"<h3>{hook_point}</h3>" if hook_point else ""
        html += draw(numbers, [str(place_of(sites[each])[0]) for each in numbers])
    return html


def _norms(metadata: Metadata) -> Section:
    values = [
        [*quantiles(each, 0.01, 0.25, 0.5, 0.75, 0.99), each.mean_norm, each.max_norm]
        for each in metadata.statistics.values()
    ]
    html = _by_hook_point(
        metadata.run.sites,
        lambda sites, layers: charts.boxes(
            layers, [values[each] for each in sites], "norms by layer", "layer"
        ),
    )
    shown = ("quarters, median, 1 to 99 %", "mean", "largest")
    html += charts.key(shown, ("kbox", "kmean", "ktop"))
    return Section("Norms by layer", "Of all vectors, on a logarithmic scale.", html)


def _lengths(found: Survey) -> Section:
    lengths = found.lengths
    if not len(lengths):
        return Section("Prompt lengths", "There is no prompt.", "")
    p5, median, p95 = np.quantile(lengths, [0.05, 0.5, 0.95], method="nearest").tolist()
    text = (
        f"{count_of(len(lengths), 'prompt')} of {lengths.min():,} to {lengths.max():,} tokens, "
        f"nine in ten within {p5:,} and {p95:,}; {found.repeated:,} with exactly the tokens of "
        "an earlier one."
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
    text = "Mean norm at each position of the prompt, in medians of the layer."
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
        text = f"No vector that was read has {few} times the median norm of its layer or more."
        return Section("Outliers", text, "")
    text = (
        "Vectors with the largest norms, in medians of the layer where they are largest. The table "
        f"of layers counts all vectors of {few} medians or more. The dataset contains them all; "
        "readers can filter by norm."
    )
    table = Table(("norm", "layer", "where"), {"": rows})
    return Section("Outliers", text, table.html("left"))


def _massive(metadata: Metadata) -> Section:
    massive = massive_dimensions(metadata)[:_DIMENSIONS_SHOWN]
    bound = f"{MASSIVE_FACTOR} times the median root mean square"
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
    text = f"Dimensions of {bound} or more: share of the mean squared norm in each layer."
    return Section("Massive dimensions", text, html)


def _likeness(metadata: Metadata, found: Survey) -> Iterator[Section]:
    likeness, run = found.likeness, metadata.run
    if likeness is None:
        yield Section("Likeness of layers", "One layer, or too few vectors to compare.", "")
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
    text = f"Linear centered kernel alignment (CKA, unbiased) on {compared} that are no outliers."
    yield Section("Likeness of layers", text, html)
    series = list(by_hook_point(run.sites, likeness.dimensions.tolist()).items())
    html = charts.curves(run.layers_extracted, series, "effective dimensions by layer", "layer")
    text = (
        "How many equal and independent directions would spread as much (participation ratio), out "
        f"of {widths_named(run).removesuffix(' wide')}."
    )
    names = [name for name, _ in series if name]
    yield Section("Effective dimensions", text, html + charts.key(names))


def _grids(dataset: ActivationDataset, found: Survey) -> Section:
    spans = samples_with_grids(found.places) if dataset.metadata.run.pooling == "none" else []
    unknown = found.places.samples[found.places.cells[:, 1] == UNKNOWN_CELL]
    if spans:
        text = "Each cell in its color, and in its middle the norm of its token's vector."
    elif dataset.metadata.run.pooling == "none" and len(unknown):
        text = (
            "Nothing to draw: the tokenizer does not give each cell a token of its own, so the "
            "cells of prompts are unknown."
        )
    elif dataset.metadata.run.pooling == "none":
        text = "Nothing to draw: no prompt that was read shows grids of a size that can be drawn."
    else:
        text = "Nothing to draw: the dataset has one vector for each prompt."
    if spans and len(unknown):
        text += (
            " Left out, because their cells could not be mapped to tokens one to one: "
            f"{count_of(len(np.unique(unknown)), 'prompt')}."
        )
    if (tokens := dataset.metadata.run.settings.get("tokens", "all")) != "all":
        text += f" Only the chosen tokens are drawn: {tokens}."
    html = ""
    for span in spans:
        places = dataset.locate(found.numbers[span])
        sample_id = dataset.sample_id(int(places.samples[0]))
        names = site_labels(dataset.sites)
        html += grid_figure(sample_id, places, found.factors[:, span], names, dataset.metadata.run)
    return Section("Norms over the grids", text, html, wide=True)


def _details(metadata: Metadata) -> str:
    """The run's description, with the first of its input files."""
    inputs = [f"{each.path} ({size(each.bytes)})" for each in metadata.run.inputs]
    if len(inputs) > _INPUTS_SHOWN:
        inputs[_INPUTS_SHOWN:] = [f"and {len(inputs) - _INPUTS_SHOWN:,} more"]
    text = json.dumps(asdict(metadata.run) | {"inputs": inputs}, indent=2, ensure_ascii=False)
    return f"<details><summary>How it was made</summary><pre>{escape(text)}</pre></details>"
