"""Summary of metadata.json as facts, tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import REJECTED_FILE, Pooling
from activation_dataset.input_counts import InputCounts
from activation_dataset.metadata import Metadata, RunDescription
from activation_dataset.sites import (
    HookPoint,
    Site,
    basis_of,
    by_hook_point,
    layers_named,
    place_of,
)
from activation_dataset.statistics import LayerStatistics

OUTLIER_FACTORS = (10, 100)
"""Multiples of a site's median norm at which a vector counts as an outlier."""

MASSIVE_FACTOR = 10
"""Multiple of the median root mean square at which a dimension counts as massive."""

UNKNOWN = "-"
"""Text for a statistic of a site without finite vectors."""

# Vectors of each pooling, if all tokens are chosen and otherwise.
_POOLINGS_EXPLAINED: dict[Pooling, tuple[str, str]] = {
    "last": ("the last token of each prompt", "the last of the chosen tokens of each prompt"),
    "mean": ("the mean over each prompt", "the mean over the chosen tokens of each prompt"),
    "none": ("every token", "the chosen tokens"),
}

HOOK_POINTS_EXPLAINED: dict[HookPoint, str] = {
    "resid_pre": "residual stream before the layer",
    "q": "queries after RoPE",
    "k": "keys after RoPE",
    "v": "values",
    "z": "heads before the output projection",
    "attn_out": "attention output",
    "resid_mid": "residual stream between attention and MLP",
    "mlp_in": "normalized MLP input",
    "router_logits": "scores of the experts",
    "mlp_out": "MLP output",
    "resid_post": "residual stream after the layer",
}


@dataclass(frozen=True)
class Table:
    """Table of text.

    Attributes:
        head: names of the columns.
        groups: rows of each group, by name. If there is only one group, its name is empty.
    """

    head: Sequence[str]
    groups: Mapping[str, Sequence[Sequence[str]]]

    def text(self) -> str:
        """Return the lines for a terminal."""
        every = [self.head, *(row for rows in self.groups.values() for row in rows)]
        widths = [max(map(len, column)) for column in zip(*every, strict=True)]

        def line(row: Sequence[str]) -> str:
            cells = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
            return "  ".join(cells) + "\n"

        text = line(self.head)
        for group, rows in self.groups.items():
            text += f"{group}:\n" if group else ""
            text += "".join(map(line, rows))
        return text

    def html(self, css: str = "") -> str:
        """Return the HTML, with a CSS class."""
        body = "".join(f"<th>{escape(each)}</th>" for each in self.head)
        for group, rows in self.groups.items():
            if group:
                rest = f'<td colspan="{len(self.head) - 1}"></td>'
                body += f'<tr class="group"><th>{escape(group)}</th>{rest}</tr>'
            for row in rows:
                body += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        return f'<div class="scroll"><table class="{css}">{body}</table></div>'


def facts(metadata: Metadata) -> list[tuple[str, str, str]]:
    """Return facts about the dataset and its origin: name, value and note of each fact."""
    run = metadata.run
    statistics = metadata.statistics.values()
    outliers = [outlier_counts(each)[0] for each in statistics if each.count]
    nonfinite = count_of(sum(each.nonfinite_count for each in statistics), "non-finite vector")
    weights = "random weights, " if run.weights.get("random") else ""
    files = [file for shard in metadata.shards for file in (shard.prompts, *shard.files.values())]
    return [
        (
            "samples",
            f"{metadata.total_samples:,}",
            f"{count_of(metadata.total_tokens, 'token')}, "
            f"{count_of(metadata.total_vectors, 'vector')} in each layer",
        ),
        (
            "model",
            run.model_name,
            f"{weights}computed in {run.compute_dtype} by {', '.join(metadata.ops)}",
        ),
        ("layers", layers_named(run.layers_extracted), widths_named(run)),
        (
            "captured",
            ", ".join(run.hook_points),
            ", ".join(HOOK_POINTS_EXPLAINED[each] for each in run.hook_points),
        ),
        ("pooling", run.pooling, _tokens_of(run)),
        (
            "size",
            size(sum(file.bytes for file in files)),
            f"{run.storage_dtype}, {count_of(len(files), 'file')} in "
            f"{count_of(len(metadata.shards), 'shard')}",
        ),
        (
            "outliers",
            f"{max(outliers):,}" if outliers else UNKNOWN,
            f"maximum over the layers; {nonfinite} in total",
        ),
        *inputs(metadata),
    ]


def widths_named(run: RunDescription) -> str:
    """Return the widths of the sites as text, such as "896 wide" or "q 896, k 128 wide"."""
    widths = by_hook_point(run.sites, [run.width(site) for site in run.sites])
    named = {each: " or ".join(map("{:,}".format, sorted({*widths[each]}))) for each in widths}
    if len(set(named.values())) == 1:
        return f"{next(iter(named.values()))} wide"
    return ", ".join(f"{point} {width}" for point, width in named.items()) + " wide"


def _tokens_of(run: RunDescription) -> str:
    """Describe the tokens of the vectors, the context window and the prepended token."""
    text, of_chosen = _POOLINGS_EXPLAINED[run.pooling]
    if (tokens := run.settings.get("tokens", "all")) != "all":
        text = f"{of_chosen}, {tokens}"
    if size := run.settings.get("context_size"):
        text += f"; documents in windows of {size} tokens"
        if overlap := run.settings.get("context_overlap"):
            text += f" with an overlap of {overlap}"
    bos = run.settings.get("prepend_bos")
    if isinstance(bos, Mapping):
        named = f"{bos['token']!r} (id {bos['id']})" if "token" in bos else f"id {bos['id']}"
        text += f"; {named} prepended to each sample"
    return text


def inputs(metadata: Metadata) -> list[tuple[str, str, str]]:
    """Return facts about the inputs: name, value and note of each fact."""
    rows = counted(metadata.counts)
    if skipped := metadata.skipped_files:
        named = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        rows.append(("skipped", count_of(len(skipped), "file"), named))
    if repeated := metadata.duplicate_tasks:
        note = "same content as an earlier one; see errors/notices.jsonl"
        rows.append(("repeated", count_of(repeated, "item"), note))
    return rows


def counted(counts: InputCounts) -> list[tuple[str, str, str]]:
    """Return the counts of a run as facts: name, value and note of each fact."""
    rows = []
    for noun, each in (("item", counts.tasks), ("sample", counts.samples)):
        rejected = f"{sum(each.rejected.values()):,} rejected{_reasons(each.rejected)}"
        rejected += f"; see {REJECTED_FILE}" if each.rejected else ""
        rows.append(("read", count_of(each.read, noun), f"{each.written:,} written, {rejected}"))
    if counts.rejected_files:
        files = count_of(sum(counts.rejected_files.values()), "file")
        rows.append(("rejected", files, f"whole or in part{_reasons(counts.rejected_files)}"))
    if counts.samples.unchosen:
        samples = count_of(counts.samples.unchosen, "sample")
        rows.append(("left out", samples, "without a chosen token"))
    if counts.truncated_samples:
        samples = count_of(counts.truncated_samples, "sample")
        tokens = count_of(counts.truncated_tokens, "token")
        rows.append(("cut off", tokens, f"at the end of {samples}"))
    if counts.unknown_cell_samples:
        samples = count_of(counts.unknown_cell_samples, "sample")
        rows.append(("unknown", "cells", f"of {samples}: cells and tokens do not match one to one"))
    return rows


def _reasons(rejected: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count:,} {why}" for why, count in sorted(rejected.items()))
    return f" ({reasons})" if reasons else ""


def inspect(path: str, metadata: Metadata) -> str:
    """Return text for a terminal with facts and a table of the layers."""
    text = f"{path}\n"
    for name, value, note in facts(metadata):
        text += f"  {name:<9} {value}" + (f"; {note}" if note else "") + "\n"
    text += f"\nNorms of the vectors of each layer\n{layer_table(metadata).text()}\n"
    return text + f"{massive_line(metadata)}\n"


def layer_table(metadata: Metadata) -> Table:
    """Return a table of the norms of each site, at most 80 characters wide.

    If the dataset has non-finite vectors, the last column counts them. The other columns of a site
    without finite vectors are UNKNOWN.
    """
    nonfinite = any(each.nonfinite_count for each in metadata.statistics.values())
    head = ["layer", "mean", "rms", "p1", "median", "p99", "max", "max/median"]
    head += [f">={factor}x" for factor in OUTLIER_FACTORS] + ["non-finite"] * nonfinite
    rows = []
    for site, each in metadata.statistics.items():
        cells = _norm_cells(each) if each.count else [UNKNOWN] * (len(head) - 1 - nonfinite)
        rows.append([str(place_of(site)[0]), *cells, *[f"{each.nonfinite_count:,}"] * nonfinite])
    return Table(head, by_hook_point(metadata.run.sites, rows))


def _norm_cells(statistics: LayerStatistics) -> list[str]:
    """Return the cells of a site with finite vectors, from the mean to the outliers."""
    low, median, high = quantiles(statistics, 0.01, 0.5, 0.99)
    rms = math.sqrt(statistics.mean_squared_norm)
    norms = (statistics.mean_norm, rms, low, median, high, statistics.max_norm)
    ratio = number(statistics.max_norm / median if median else 0)
    counts = [f"{count:,}" for count in outlier_counts(statistics)]
    return [*map(number, norms), f"{ratio}x", *counts]


def quantiles(statistics: LayerStatistics, *qs: float) -> list[float]:
    """Return quantiles of the norms of a site, with a relative error of at most 1/128.

    The quantiles are 0 if the site has no finite vectors.
    """
    return [min(statistics.norm_histogram.quantile(q), statistics.max_norm) for q in qs]


def outlier_counts(statistics: LayerStatistics) -> list[int]:
    """Return the numbers of vectors with at least 10 and 100 times the median norm of a site."""
    norms = statistics.norm_histogram
    (median,) = quantiles(statistics, 0.5)
    return [norms.count_from(each * median) if median else 0 for each in OUTLIER_FACTORS]


def shares(statistics: LayerStatistics) -> NDArray[np.float64]:
    """Return the share of each dimension in the mean squared norm of a site, [hidden] float64.

    The shares are NaN if the site has no finite vectors.
    """
    if not statistics.count:
        return np.full(statistics.hidden, np.nan)
    squares = statistics.mean**2 + statistics.variance
    result: NDArray[np.float64] = squares / max(float(squares.sum()), 1e-300)
    return result


def massive_dimensions(metadata: Metadata) -> list[tuple[int, list[Site], float]]:
    """Return the dimensions whose root mean square is MASSIVE_FACTOR times the median at some site.

    All sites of the residual stream share their dimensions. Other hook points, such as queries,
    have their own.

    Returns:
        For each dimension, its number, the sites where it is massive, and its largest share of the
        squared norm. The largest share comes first.
    """
    found: dict[tuple[str, int], tuple[list[Site], float]] = {}
    for site, statistics in metadata.statistics.items():
        share = shares(statistics)
        bound = MASSIVE_FACTOR * np.median(np.sqrt(share))
        for each in np.flatnonzero(np.sqrt(share) >= bound).tolist() if bound else []:
            key = basis_of(site), each
            sites, largest = found.get(key, ([], 0.0))
            found[key] = [*sites, site], max(largest, float(share[each]))
    ordered = sorted(found.items(), key=lambda item: (-item[1][1], item[0]))
    return [(dimension, *rest) for (_, dimension), rest in ordered]


def massive_line(metadata: Metadata, most: int = 8) -> str:
    """Return a sentence that names at most `most` massive dimensions."""
    found = massive_dimensions(metadata)
    named = [
        f"{each} (layers {layers_named(sites)}, up to {share:.0%} of the squared norm)"
        for each, sites, share in found[:most]
    ]
    more = [f"and {len(found) - most:,} more"] if len(found) > most else []
    return f"Massive dimensions: {', '.join(named + more) or 'none'}."


def number(value: float) -> str:
    """Format a number with at least three significant digits, if possible without an exponent."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e9:
        return f"{value:.2e}"
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:,.{max(0, 2 - exponent)}f}"


def size(count: float) -> str:
    """Format a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{number(count)} {unit}"
        count /= 1000
    return f"{number(count)} PB"


def count_of(count: int, singular: str) -> str:
    """Format a count and its noun, such as "1 sample" and "2 samples"."""
    return f"{count:,} {singular}" + ("" if count == 1 else "s")
