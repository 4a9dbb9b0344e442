"""Report on an autoencoder: one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from html import escape

import numpy as np

from activation_dataset.reporting import charts
from activation_dataset.reporting.grid_figure import NOTHING, colors_of, grid_drawing
from activation_dataset.reporting.page import Section, page
from activation_dataset.sites import hook_name, site_label
from examples.features import Feature, grid_features
from examples.fit import Evaluation, Fit

_FEATURES_SHOWN = 12


def sae_page(fit: Fit, result: Evaluation) -> str:
    """Return the HTML of the report on a trained autoencoder."""
    run, settings = fit.dataset.metadata.run, fit.settings
    weights = " with random weights" if run.weights.get("random") else ""
    tasks = ", ".join(fit.split.tasks[:8]) + ", …" * (len(fit.split.tasks) > 8)
    details = json.dumps({"layer": fit.site} | asdict(settings), indent=2)
    return page(
        f"Sparse autoencoder of layer {site_label(fit.site)}",
        f"Activations of {run.model_name}{weights} at {hook_name(fit.site)} as sums of "
        f"{settings.active} of {settings.features:,} directions, evaluated on held-out "
        f"tasks: {tasks}.",
        _tiles(fit, result),
        [_loss(fit), _explained(fit, result), *_frequencies(result), _grids(fit, result)],
        f"Dataset: {fit.dataset.path}. Explained variance is 1 - sum of |x - x'|² / sum of "
        "|x - mean|², over vectors of tasks that were held out with all their variants.",
        f"<details><summary>Settings</summary><pre>{escape(details)}</pre></details>",
    )


def _tiles(fit: Fit, result: Evaluation) -> Iterator[tuple[str, str, str]]:
    settings = fit.settings
    yield "explained variance", f"{result.explained:.1%}", "of the held-out vectors"
    note = f"explained by {settings.active} components"
    yield "principal components", f"{result.by_components:.1%}", note
    yield "features", f"{settings.features:,}", f"{settings.active} active at a time"
    yield "dead features", f"{result.dead:,}", f"idle in the last {settings.idle_steps} steps"
    yield "trained on", f"{len(fit.split.train):,}", "vectors"
    yield "evaluated on", f"{len(fit.held_out):,}", f"vectors of {len(fit.split.tasks):,} tasks"


def _loss(fit: Fit) -> Section:
    losses = [each.unexplained for each in fit.history]
    chart = charts.curves(_steps(fit), [("training", losses)], "loss by step", "step", log=True)
    text = "Unexplained share of the variance of the training batches."
    return Section("Loss", text, chart)


def _explained(fit: Fit, result: Evaluation) -> Section:
    components = f"{fit.settings.active} principal components"
    series = [
        ("autoencoder", [each.explained for each in fit.history]),
        (components, [result.by_components] * len(fit.history)),
    ]
    chart = charts.curves(_steps(fit), series, "explained variance by step", "step")
    text = "Explained share of the variance of held-out vectors."
    return Section("Explained variance", text, chart + charts.key([name for name, _ in series]))


def _frequencies(result: Evaluation) -> Iterator[Section]:
    active = (result.codes > 0).sum(axis=0)
    used = active[active > 0]
    if len(used):
        in_many = np.maximum(1, np.rint(used / len(result.codes) * 10_000)).astype(np.int64)
        marks = {"median": float(np.median(in_many))}
        label = "features by frequency of activity"
        chart = charts.histogram(in_many, label, "of 10,000 tokens", marks)
        text = f"{len(used):,} features are active on held-out vectors."
        yield Section("Feature frequencies", text, chart)


def _grids(fit: Fit, result: Evaluation) -> Section:
    found = grid_features(fit.held_out, result.codes, _FEATURES_SHOWN)
    title = "Features on grids"
    if not found:
        text = (
            "Nothing to draw: the vectors show no grid cells. Use a dataset with --pooling none "
            "and a tokenizer that has one token for each cell."
        )
        return Section(title, text, "", wide=True)
    text = (
        "Features with the most activity on grids, among the features that are active on at most a "
        "tenth of the tokens. Each feature is shown on the grids of held-out tasks where it is "
        "most active. Cells have their own colors. A brighter square in a cell means a more active "
        "feature."
    )
    html = "".join(_figure(fit, feature) for feature in found)
    return Section(title, text, f'<div class="cards">{html}</div>', wide=True)


def _figure(fit: Fit, feature: Feature) -> str:
    places = fit.held_out.places
    strongest = float(feature.activity.max())
    drawings = []
    for grid in feature.grids:
        activity = feature.activity[grid]
        heat = charts.heat(activity.astype(np.float64), 0, strongest)
        levels = [
            charts.LEVELS[level] if value > 0 else NOTHING
            for level, value in zip(heat.tolist(), activity.tolist(), strict=True)
        ]
        cells = places.cells[grid, 2:].astype(np.int64)
        colors = colors_of(places.token_ids[grid], fit.dataset.metadata.run)
        drawing = grid_drawing(cells, colors, "".join(levels))
        origin = fit.dataset.trace(int(fit.held_out.numbers[grid[0]]))
        pair = "the test" if origin.example == "test" else f"example {origin.example}"
        caption = f"{origin.name.task_id}, {origin.role} of {pair}"
        title = f"<span title='{escape(origin.sample_id)}'>{escape(caption)}</span>"
        drawings.append(f'<div class="pair">{title}{drawing}</div>')
    color, share = feature.color
    return (
        f'<figure class="grids"><figcaption>feature {feature.number}</figcaption>'
        f"<p>active on {feature.frequency:.1%} of tokens; {share:.0%} of the activity on {color} "
        f"cells, {feature.in_outputs:.0%} in outputs</p>"
        f'<div class="pairs">{"".join(drawings)}</div>'
        "</figure>"
    )


def _steps(fit: Fit) -> list[int]:
    return [each.step for each in fit.history]
