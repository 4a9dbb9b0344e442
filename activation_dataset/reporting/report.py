"""Report on a dataset: one page of HTML that needs no other file and no network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from activation_dataset.metadata import Metadata
from activation_dataset.prompts import ROLES
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reporting import charts
from activation_dataset.reporting.axes import Labels, layer_labels
from activation_dataset.reporting.grid_figure import grid_figure, samples_with_grids
from activation_dataset.reporting.page import Section, page
from activation_dataset.reporting.summary import (
    MASSIVE_FACTOR,
    OUTLIER_FACTORS,
    SiteSummary,
    Table,
    count_of,
    facts,
    headline,
    layer_table,
    layers_named,
    massive_dimensions,
    number,
    size,
    summaries,
    total_bytes,
)
from activation_dataset.reporting.survey import Survey
from activation_dataset.sites import by_hook_point, place_of, site_labels

KINDS = ("input cells", "output cells", "text")
"""What a token shows."""

# Four bins from a power of two to the next, none narrower than a position.
POSITION_STARTS: NDArray[np.int64] = np.unique((2 ** (np.arange(84) / 4)).astype(np.int64) - 1)
"""[bins] int64: first position of each bin of positions; the last bin has no end."""

_OUTLIERS_SHOWN = 12
_DIMENSIONS_SHOWN = 8
_INPUTS_SHOWN = 20


def report(dataset: ActivationDataset, found: Survey) -> str:
    """HTML of the page, which is a function of the dataset and of the findings."""
    metadata = dataset.metadata
    layers = summaries(metadata)
    medians = np.array([[max(layer.median_norm, 1e-300)] for layer in layers])
    names, labels = site_labels(metadata.run.sites), layer_labels(metadata.run.sites)
    known = facts(metadata)
    sections = [
        _norms(layers, names, labels),
        _lengths(found),
        *_positions(found, medians, labels),
        _outliers(dataset, found, medians, names),
        *_kinds(found, medians, labels),
        _massive(layers, labels),
        *_likeness(metadata, found, labels),
        _grids(dataset, found, medians, names),
        Section(
            "Layers",
            "Norms of all vectors, Euclidean. Quantiles, and the bounds by which outliers are "
            "counted, are known to within 1/64.",
            layer_table(layers).html(),
            wide=True,
        ),
    ]
    return page(
        os.path.basename(os.path.normpath(dataset.path)) or dataset.path,
        f"Activations of {known['model']}: {known['captured']}, {known['pooling']}.",
        _tiles(metadata, layers, known),
        sections,
        _footer(metadata, found),
        _details(metadata),
    )


def _tiles(
    metadata: Metadata, layers: Sequence[SiteSummary], known: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    run = metadata.run
    rejected = sum(metadata.rejected.values())
    outliers = max(layer.outliers[0] for layer in layers)
    hook_points = count_of(len(run.hook_points), "hook point")
    vectors = f"{count_of(metadata.total_vectors, 'vector')} in each layer"
    yield "samples", f"{metadata.total_samples:,}", ""
    yield "tokens", f"{metadata.total_tokens:,}", vectors
    yield "layers", layers_named(run.layers_extracted), f"{hook_points}, {run.hidden_dim:,} wide"
    yield "size", size(total_bytes(metadata)), f"{known['stored as']}, {known['files']}"
    yield "rejected tasks", f"{rejected:,}", known["rejected"] if rejected else ""
    yield "outliers", f"{outliers:,}", f"in the worst layer; {known['non-finite']} not finite"


def _norms(layers: Sequence[SiteSummary], names: Sequence[str], labels: Labels) -> Section:
    data = [
        charts.Box(
            f"layer {name}: median {number(layer.median_norm)}, max {number(layer.max_norm)}",
            layer.quantiles,
            layer.mean_norm,
            layer.max_norm,
        )
        for layer, name in zip(layers, names, strict=True)
    ]
    shown = ("quarters, median, 1 to 99 %", "mean", "largest")
    html = charts.boxes(labels, data, "norms by layer") + charts.key(
        shown, ("kbox", "kmean", "ktop")
    )
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
    return Section(
        "Prompt lengths", text, charts.histogram(lengths, "prompts by length", "tokens", marks)
    )


def _positions(found: Survey, medians: NDArray[np.float64], labels: Labels) -> Iterator[Section]:
    bins = np.searchsorted(POSITION_STARTS, found.places.positions, side="right") - 1
    means = found.mean_norms(bins, len(POSITION_STARTS)) / medians
    used = np.flatnonzero(np.isfinite(means).any(axis=0))
    if not len(used):
        return
    shown = slice(int(used[0]), int(used[-1]) + 1)
    logs = np.log2(np.maximum(means[:, shown], 1e-9))
    low, high = np.nanquantile(logs, [0.005, 0.995]).tolist()
    starts = [str(start) for start in POSITION_STARTS[shown]]
    chart = charts.heat_map(
        logs,
        labels,
        Labels(starts, [("position from", len(starts))]),
        "mean norm by position and layer",
        (min(low, -0.25), max(high, 0.25)),
        lambda log: f"{number(2**log)} medians",
    )
    text = "Mean norm at each position of the prompt, in medians of the layer."
    yield Section("Norms by position", text, chart)


def _outliers(
    dataset: ActivationDataset, found: Survey, medians: NDArray[np.float64], names: Sequence[str]
) -> Section:
    few = OUTLIER_FACTORS[0]
    factors = np.nan_to_num(found.norms / medians)
    factors[medians[:, 0] <= 1e-300] = 0
    worst = factors.max(axis=0, initial=0)
    largest = np.argsort(-worst, kind="stable")[:_OUTLIERS_SHOWN]
    rows = [
        (
            f"{number(worst[n])} x",
            names[factors[:, n].argmax()],
            str(dataset.trace(found.numbers[n])),
        )
        for n in largest.tolist()
        if worst[n] >= few
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


def _kinds(found: Survey, medians: NDArray[np.float64], labels: Labels) -> Iterator[Section]:
    roles = found.places.cells[:, 1].astype(np.int64)
    if not (roles >= 0).any():
        return
    means = found.mean_norms(np.where(roles < 0, len(ROLES), roles), len(KINDS)) / medians
    chart = charts.heat_map(
        means.T,
        Labels(KINDS, [("", len(KINDS))]),
        labels,
        "mean norm by what the token shows",
        (float(np.nanmin(means)), float(np.nanmax(means))),
        lambda mean: f"{number(mean)} medians",
    )
    text = "Mean norm of the vectors whose tokens show a cell of a grid or text, in medians."
    yield Section("Norms by kind of token", text, chart)


def _massive(layers: Sequence[SiteSummary], labels: Labels) -> Section:
    dimensions = [each for each, *_ in massive_dimensions(layers)[:_DIMENSIONS_SHOWN]][::-1]
    bound = f"{MASSIVE_FACTOR} times the median root mean square"
    if not dimensions:
        return Section("Massive dimensions", f"No dimension has {bound} of its layer.", "")
    shares = np.array([layer.shares[dimensions] for layer in layers]).T
    chart = charts.heat_map(
        shares,
        Labels([str(each) for each in dimensions], [("dimension", len(dimensions))]),
        labels,
        "share of the squared norm by dimension and layer",
        (0, float(shares.max())),
        "{:.1%}".format,
    )
    text = f"Dimensions of {bound} or more: share of the mean squared norm in each layer."
    return Section("Massive dimensions", text, chart)


def _likeness(metadata: Metadata, found: Survey, labels: Labels) -> Iterator[Section]:
    likeness, run = found.likeness, metadata.run
    if likeness is None:
        yield Section("Likeness of layers", "One layer, or too few vectors to compare.", "")
        return
    chart = charts.heat_map(
        likeness.alignment,
        labels,
        labels,
        "similarity of layers",
        (min(0.98, float(likeness.alignment.min())), 1),
        "{:.2f}".format,
    )
    compared = count_of(likeness.vectors, "vector")
    text = f"Linear centered kernel alignment (CKA, unbiased) on {compared} that are no outliers."
    yield Section("Likeness of layers", text, chart)
    series = [
        (name or "dimensions", values)
        for name, values in by_hook_point(run.sites, likeness.dimensions.tolist()).items()
    ]
    chart = charts.curves(
        run.layers_extracted, series, "effective dimensions by layer", "layer"
    ) + charts.key([name for name, _ in series])
    text = (
        "How many equal and independent directions would spread as much (participation ratio), out "
        f"of {run.hidden_dim:,}."
    )
    yield Section("Effective dimensions", text, chart)


def _grids(
    dataset: ActivationDataset, found: Survey, medians: NDArray[np.float64], names: Sequence[str]
) -> Section:
    spans = samples_with_grids(found.places) if dataset.kind.pooling == "none" else []
    text = "Each cell in its color, and in its middle the norm of its token's vector."
    if not spans:
        text = (
            "Nothing to draw: no prompt that was read shows grids of a size that can be drawn."
            if dataset.kind.pooling == "none"
            else "Nothing to draw: the dataset has one vector for each prompt."
        )
    html = ""
    for span in spans:
        places = dataset.locate(found.numbers[span])
        sample_id = dataset.sample_id(int(places.samples[0]))
        html += grid_figure(sample_id, places, found.norms[:, span] / medians, names)
    return Section("Norms over the grids", text, html, wide=True)


def _details(metadata: Metadata) -> str:
    """The run's description, with the first of its input files."""
    inputs = [f"{each.path} ({size(each.bytes)})" for each in metadata.run.inputs]
    if (more := len(inputs) - _INPUTS_SHOWN) > 0:
        inputs = [*inputs[:_INPUTS_SHOWN], f"and {more:,} more"]
    text = json.dumps(metadata.run.to_json() | {"inputs": inputs}, indent=2, ensure_ascii=False)
    return f"<details><summary>How it was made</summary><pre>{escape(text)}</pre></details>"


def _footer(metadata: Metadata, found: Survey) -> str:
    whole = len(found.numbers) == metadata.total_vectors
    read = "all vectors" if whole else f"{len(found.numbers):,} vectors of each layer"
    return (
        f"{headline(metadata)}. The report read {read}, of {count_of(found.shards, 'shard')}; the "
        "norms by layer, the massive dimensions and the table are of all vectors."
    )
