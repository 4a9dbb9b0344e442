"""A dataset on one page: HTML that needs no other file and no network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import METADATA_FILE, RUN_FILE
from activation_dataset.metadata import Metadata
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reporting import charts
from activation_dataset.reporting.axes import Labels, layer_labels
from activation_dataset.reporting.grid_figure import grid_figure
from activation_dataset.reporting.inspect import prompt_lines
from activation_dataset.reporting.page import Section, page
from activation_dataset.reporting.summary import (
    HOOK_POINTS_EXPLAINED,
    MASSIVE_FACTOR,
    OUTLIER_FACTORS,
    POOLINGS_EXPLAINED,
    LayerSummary,
    by_dimension,
    count_of,
    headline,
    layer_table,
    layers_named,
    number,
    size,
    summaries,
    total_bytes,
)
from activation_dataset.reporting.survey import Survey
from activation_dataset.reporting.survey_layer import KINDS, POSITION_STARTS
from activation_dataset.sites import place_of, site_labels

_DIMENSIONS_SHOWN = 8
_MAPS_SHOWN = 30


def report(dataset: ActivationDataset, found: Survey) -> str:
    """The page: a function of the dataset, of what was found, and of the times of its files."""
    metadata = dataset.metadata
    layers = summaries(metadata)
    sections = [
        _norms(metadata, layers),
        _lengths(found),
        *_positions(layers, found),
        *_outliers(layers, found),
        *_kinds(layers, found),
        _massive(metadata, layers),
        *_likeness(metadata, found),
        _grids(metadata, layers, found),
        _table(layers),
    ]
    return page(
        os.path.basename(os.path.normpath(dataset.path)) or dataset.path,
        _subtitle(metadata),
        _tiles(metadata, layers, run_seconds(dataset.path, metadata)),
        sections,
        _footer(metadata, found),
        _details(metadata),
    )


def run_seconds(path: str, metadata: Metadata) -> float | None:
    """How long the job took, by the times of a local dataset's files; None where they do not say.

    The job writes run.json first and metadata.json last. Files that were copied have other times,
    mostly in another order, and then nothing is said.
    """
    folder = Path(path)
    try:
        first = (folder / RUN_FILE).stat().st_mtime
        last = (folder / METADATA_FILE).stat().st_mtime
        written = [
            (folder / entry.path).stat().st_mtime
            for batch in metadata.shards
            for entry in batch.files.values()
        ]
    except OSError:
        return None
    in_order = all(first <= each <= last for each in written)
    return last - first if in_order and last > first else None


def _subtitle(metadata: Metadata) -> str:
    run = metadata.run
    weights = " with random weights" if run.weights.get("random") else ""
    hook_points = ", ".join(HOOK_POINTS_EXPLAINED[each] for each in run.hook_points)
    return (
        f"Activations of {run.model_name}{weights}, {hook_points}: "
        f"{POOLINGS_EXPLAINED[run.pooling]}, "
        f"computed in {run.compute_dtype}, stored as {run.storage_dtype}."
    )


def _tiles(
    metadata: Metadata, layers: Sequence[LayerSummary], seconds: float | None
) -> list[tuple[str, str, str]]:
    run = metadata.run
    shards = count_of(len(metadata.shards), "shard")
    vectors = f"{count_of(metadata.total_vectors, 'vector')} in each layer"
    nonfinite = sum(layer.nonfinite for layer in layers)
    outliers = max((layer.outliers[0] for layer in layers), default=0)
    rejected = ", ".join(
        f"{count:,} {reason}" for reason, count in sorted(metadata.rejected.items())
    )
    several = len(run.hook_points) > 1
    hook_points = f"at {len(run.hook_points)} hook points, " if several else ""
    tiles = [
        ("samples", f"{metadata.total_samples:,}", ""),
        ("tokens", f"{metadata.total_tokens:,}", vectors),
        ("layers", layers_named(run.layers_extracted), f"{hook_points}{run.hidden_dim:,} wide"),
        ("size", size(total_bytes(metadata)), shards),
        ("rejected tasks", f"{sum(metadata.rejected.values()):,}", rejected),
        ("outliers", f"{outliers:,}", f"in the worst layer; {nonfinite:,} non-finite in all"),
    ]
    if seconds is not None:
        speed = f"{metadata.total_tokens / seconds:,.0f} tokens/s in all"
        tiles.append(("time of the run", _duration(seconds), speed))
    return tiles


def _norms(metadata: Metadata, layers: Sequence[LayerSummary]) -> Section:
    histograms = [metadata.statistics[layer.layer].norm_histogram for layer in layers]
    data = charts.Boxes(
        low=[layer.low_norm for layer in layers],
        lower=[histogram.quantile(0.25) for histogram in histograms],
        middle=[layer.median_norm for layer in layers],
        upper=[histogram.quantile(0.75) for histogram in histograms],
        high=[layer.high_norm for layer in layers],
        mean=[layer.mean_norm for layer in layers],
        top=[layer.max_norm for layer in layers],
    )
    key = (
        '<p class="key"><span><i class="kbox"></i>quarters, median, 1 to 99 %</span>'
        '<span><i class="kmean"></i>mean</span><span><i class="ktop"></i>largest</span></p>'
    )
    names = _names(layers)

    def title(place: int) -> str:
        layer = layers[place]
        return (
            f"layer {names[place]}: median {number(layer.median_norm)}, "
            f"max {number(layer.max_norm)}"
        )

    chart = charts.boxes(_labels(layers), data, "norms by layer", title)
    return Section("Norms by layer", "Of all vectors, on a logarithmic scale.", chart + key)


def _lengths(found: Survey) -> Section:
    lengths = found.prompts.lengths
    text = "; ".join(prompt_lines(found.prompts)[:2]).rstrip(":") + "."
    if not len(lengths):
        return Section("Prompt lengths", "There is no prompt.", "")
    marks = {"median": float(np.median(lengths)), "95 %": float(np.quantile(lengths, 0.95))}
    if len(lengths) < 20:
        del marks["95 %"]
    chart = charts.histogram(lengths, "prompts by length", "tokens", marks)
    return Section("Prompt lengths", text, chart)


def _positions(layers: Sequence[LayerSummary], found: Survey) -> Iterator[Section]:
    counts = np.array([each.position_counts for each in found.layers])
    used = np.flatnonzero(counts.any(axis=0))
    if not len(used):
        return
    used = np.arange(used[0], used[-1] + 1)
    medians = np.array([max(layer.median_norm, 1e-300) for layer in layers])[:, None]
    factors = np.array([each.position_norms for each in found.layers])[:, used] / medians
    outside = np.array([each.position_outliers for each in found.layers])[:, used, 0]
    counts = counts[:, used]
    logs = np.log2(np.maximum(factors, 1e-9))
    low, high = np.quantile(logs[counts > 0], [0.005, 0.995]).tolist()
    low, high = min(low, -0.25), max(high, 0.25)
    levels = np.where(counts > 0, charts.heat(logs, low, high), -1)
    names, positions = _names(layers), _position_names(used)

    def title(row: int, column: int) -> str:
        return (
            f"layer {names[row]}, position {positions[column]}: "
            f"{number(factors[row, column])} medians, {outside[row, column]:,} of "
            f"{counts[row, column]:,} are outliers"
        )

    chart = charts.heat_map(
        levels,
        _labels(layers),
        Labels([each.split("-")[0] for each in positions], "position from"),
        "mean norm by position and layer",
        title,
    )
    key = charts.ramp(f"{2**low:.2f} medians", f"{number(2**high)} medians")
    text = "Mean norm at each place in the prompt, in medians of the layer."
    yield Section("Norms by position", text, chart + key)


def _position_names(bins: NDArray[np.int64]) -> list[str]:
    """The positions of each bin, such as "3" and "8-10"."""
    ends = [*(POSITION_STARTS[1:] - 1).tolist(), None]
    names = []
    for start, end in ((int(POSITION_STARTS[place]), ends[place]) for place in bins.tolist()):
        names.append(str(start) if start == end else f"{start}-{'' if end is None else end}")
    return names


def _outliers(layers: Sequence[LayerSummary], found: Survey) -> Iterator[Section]:
    few = OUTLIER_FACTORS[0]
    if not found.outliers:
        text = f"No vector that was read has {few} times the median norm of its layer or more."
        yield Section("Outliers", text, "")
        return
    names = dict(zip((layer.layer for layer in layers), _names(layers), strict=True))
    rows = [
        (f"{number(each.factor)} x", names[each.layer], str(each.origin)) for each in found.outliers
    ]
    text = (
        "The vectors with the largest norms, in medians of the layer where they are largest. All "
        f"those of {few} medians or more are counted in the table of layers. None is left out of "
        "the dataset: readers can filter by norm."
    )
    html = _html_table(("norm", "layer", "where"), {"": rows}, "left")
    yield Section("Outliers", text, html)


def _kinds(layers: Sequence[LayerSummary], found: Survey) -> Iterator[Section]:
    kinds = np.array([each.kinds for each in found.layers])
    counts = kinds[:, :, 0].sum(axis=0)
    if not counts[:2].any():
        return
    medians = np.array([max(layer.median_norm, 1e-300) for layer in layers])
    series = [
        (name, np.where(kinds[:, n, 0] > 0, kinds[:, n, 1] / medians, np.nan).tolist())
        for n, name in enumerate(KINDS)
    ]
    chart = charts.lines(_labels(layers), series, "mean norm by what the token shows")
    text = "Mean norm of the vectors whose tokens show a cell of a grid, or not, in medians."
    yield Section("Norms by kind of token", text, chart + charts.key(KINDS))


def _massive(metadata: Metadata, layers: Sequence[LayerSummary]) -> Section:
    heading = "Massive dimensions"
    found = by_dimension(layers)[:_DIMENSIONS_SHOWN]
    if not found:
        return Section(
            heading,
            f"No dimension has {MASSIVE_FACTOR} times the median root mean square of its layer.",
            "",
        )
    shares = np.array(
        [(each := metadata.statistics[layer.layer]).mean ** 2 + each.variance for layer in layers]
    )
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
    dimensions = [dimension for dimension, _, _ in reversed(found)]
    part = shares[:, dimensions].T

    names = _names(layers)

    def title(row: int, column: int) -> str:
        return f"dimension {dimensions[row]} in layer {names[column]}: {part[row, column]:.1%}"

    most = float(part.max())
    chart = charts.heat_map(
        charts.heat(part, 0, most),
        Labels([str(each) for each in dimensions]),
        _labels(layers),
        "share of the squared norm by dimension and layer",
        title,
    )
    text = (
        f"Dimensions of {MASSIVE_FACTOR} times the median root mean square or more, and their "
        "share of the mean squared norm in each layer."
    )
    return Section(heading, text, chart + charts.ramp("0 %", f"{most:.0%}"))


def _likeness(metadata: Metadata, found: Survey) -> Iterator[Section]:
    likeness = found.likeness
    if likeness is None:
        yield Section("Likeness of layers", "One layer, or too few vectors to compare.", "")
        return
    names, labels = site_labels(metadata.run.sites), layer_labels(metadata.run.sites)
    values = likeness.alignment
    low = min(0.98, float(values.min()))

    def title(row: int, column: int) -> str:
        return f"layers {names[row]} and {names[column]}: {values[row, column]:.3f}"

    chart = charts.heat_map(
        charts.heat(values, low, 1), labels, labels, "similarity of layers", title
    )
    compared = count_of(len(likeness.vectors), "vector")
    text = f"Linear centred kernel alignment (CKA, unbiased) on {compared} that are no outliers."
    yield Section("Likeness of layers", text, chart + charts.ramp(f"{low:.2f}", "1"))

    spread = charts.lines(
        labels, [("dimensions", likeness.dimensions.tolist())], "effective dimensions by layer"
    )
    text = (
        "How many equal and independent directions would spread as much (participation ratio), of "
        f"{metadata.run.hidden_dim:,}."
    )
    yield Section("Effective dimensions", text, spread)

    groups, key = _groups(metadata, found)
    reach = float(np.quantile(np.abs(likeness.components), 0.999))
    maps = ""
    for hook_point in metadata.run.hook_points:
        places = [n for n, s in enumerate(metadata.run.sites) if place_of(s)[1] == hook_point]
        count = max(1, _MAPS_SHOWN // len(metadata.run.hook_points))
        figures = ""
        for place in _spread(places, count):
            label = f"principal components of layer {names[place]}"
            chart = charts.scatter(likeness.components[place], groups, reach, label)
            caption = f"layer {labels.names[place]}, {likeness.explained[place].sum():.0%}"
            figures += f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"
        heading = f"<h3>{hook_point}</h3>" if labels.groups else ""
        maps += f'{heading}<div class="maps">{figures}</div>'
    text = (
        f"The same {compared} in every layer, on its two largest principal components, each map "
        "turned towards the one before; with the share of the variance that it shows."
    )
    html = maps + charts.key(key)
    yield Section("Principal components over layers", text, html, wide=True)


def _spread(places: Sequence[int], count: int) -> list[int]:
    """Some of the places, evenly spaced, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(places) - 1, count).round().astype(int))
    return [places[each] for each in chosen.tolist()]


def _groups(metadata: Metadata, found: Survey) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The colours of the compared vectors: by what their tokens show, or by the prompts' order."""
    roles = found.compared.cells[:, 1]
    if (roles >= 0).any():
        return np.where(roles < 0, 2, roles).astype(np.int64), KINDS
    positions = found.compared.positions
    if metadata.run.pooling == "last":
        thirds = np.quantile(positions, [1 / 3, 2 / 3])
        names = ("short prompts", "middling ones", "long ones")
        return np.searchsorted(thirds, positions), names
    return np.zeros(len(roles), np.int64), ("vectors",)


def _grids(metadata: Metadata, layers: Sequence[LayerSummary], found: Survey) -> Section:
    title = "Norms over the grids"
    if not found.grids:
        why = (
            "none of the prompts that were read shows grids of a size that can be drawn"
            if metadata.run.pooling == "none"
            else "the dataset has one vector for each prompt, and not for each token"
        )
        return Section(title, f"Nothing to draw: {why}.", "", wide=True)
    medians = [layer.median_norm for layer in layers]
    text = "Each cell in its colour, and in its middle the norm of its token's vector."
    html = "".join(grid_figure(grid, _names(layers), medians) for grid in found.grids)
    return Section(title, text, html, wide=True)


def _table(layers: Sequence[LayerSummary]) -> Section:
    text = (
        "Norms of all vectors, Euclidean. Quantiles, and the bounds by which outliers are counted, "
        "are known to within 1/64."
    )
    head, groups = layer_table(layers)
    return Section("Layers", text, _html_table(head, groups), wide=True)


def _details(metadata: Metadata) -> str:
    run = metadata.run.to_json()
    shown = {key: value for key, value in run.items() if key != "inputs"}
    inputs = [f"{each.path} ({size(each.bytes)})" for each in metadata.run.inputs]
    shown["inputs"] = inputs[:20] + ([f"and {len(inputs) - 20} more"] if len(inputs) > 20 else [])
    text = json.dumps(shown, indent=2, ensure_ascii=False)
    return f"<details><summary>How it was made</summary><pre>{escape(text)}</pre></details>"


def _footer(metadata: Metadata, found: Survey) -> str:
    shards = len(metadata.shards)
    read = "All vectors" if found.whole else f"{found.vectors:,} vectors of each layer"
    looked = "" if found.prompts.shards == shards else f" of {found.prompts.shards:,} shards"
    return (
        f"{headline(metadata)}. {read} were read{looked}; the norms by layer, the massive "
        "dimensions and the table are of all."
    )


def _names(layers: Sequence[LayerSummary]) -> list[str]:
    return site_labels([layer.layer for layer in layers])


def _labels(layers: Sequence[LayerSummary]) -> Labels:
    return layer_labels([layer.layer for layer in layers])


def _html_table(
    head: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]], name: str = ""
) -> str:
    """A table; rows are below the names of their groups, which may be empty."""
    titles = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = ""
    for group, rows in groups.items():
        if group:
            rest = len(head) - 1
            body += f'<tr class="group"><th>{escape(group)}</th><td colspan="{rest}"></td></tr>'
        for row in rows:
            body += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    return f'<div class="scroll"><table class="{name}"><tr>{titles}</tr>{body}</table></div>'


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
