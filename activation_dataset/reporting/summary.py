"""What metadata.json says about a dataset, in numbers, facts and tables for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import Pooling
from activation_dataset.metadata import Metadata
from activation_dataset.sites import DEFAULT_HOOK_POINT, HookPoint, Site, by_hook_point, place_of

OUTLIER_FACTORS = (10, 100)
"""Multiples of a site's median norm from which a vector counts as an outlier."""

MASSIVE_FACTOR = 10
"""Multiple of the median root mean square from which a dimension counts as massive."""

POOLINGS_EXPLAINED: dict[Pooling, str] = {
    "last": "the last token of each prompt",
    "mean": "the mean over each prompt",
    "none": "every token",
}

HOOK_POINTS_EXPLAINED: dict[HookPoint, str] = {
    "resid_pre": "residual stream before the layer",
    "attn_out": "attention output",
    "resid_mid": "residual stream between attention and MLP",
    "mlp_out": "MLP output",
    "resid_post": "residual stream after the layer",
}

_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


@dataclass(frozen=True, eq=False)
class SiteSummary:
    """Statistics of one site. Norms are Euclidean, of the vectors that are finite.

    Attributes:
        site: hook point and layer.
        vectors: number of all vectors.
        nonfinite: number of vectors with a NaN or an infinity.
        mean_norm, rms_norm, max_norm: mean, root mean square and maximum of the norms.
        quantiles: quantiles 0.01, 0.25, 0.5, 0.75 and 0.99 of the norms, to within 1/128.
        outliers: number of vectors of at least 10 and of at least 100 times the median norm.
        shares: [hidden] float64, share of each dimension of the mean squared norm.
    """

    site: Site
    vectors: int
    nonfinite: int
    mean_norm: float
    rms_norm: float
    max_norm: float
    quantiles: tuple[float, ...]
    outliers: tuple[int, ...]
    shares: NDArray[np.float64]

    @property
    def median_norm(self) -> float:
        """Median of the norms, to within 1/128."""
        return self.quantiles[2]

    def massive_dimensions(self) -> list[int]:
        """Dimensions whose root mean square is MASSIVE_FACTOR times the median one or more."""
        deviations = np.sqrt(self.shares)
        median = float(np.median(deviations))
        return np.flatnonzero(deviations >= MASSIVE_FACTOR * median).tolist() if median else []


@dataclass(frozen=True)
class Table:
    """Table of text.

    Attributes:
        head: names of the columns.
        groups: name to rows; the name is empty if there is one group.
    """

    head: Sequence[str]
    groups: Mapping[str, Sequence[Sequence[str]]]

    def text(self) -> list[str]:
        """Lines for a terminal."""
        rows = [self.head, *(row for rows in self.groups.values() for row in rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

        def line(row: Sequence[str]) -> str:
            return "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))

        lines = [line(self.head)]
        for group, rows in self.groups.items():
            lines += [f"{group}:"] if group else []
            lines += map(line, rows)
        return lines

    def html(self, css: str = "") -> str:
        """HTML with a CSS class."""
        body = "".join(f"<th>{escape(each)}</th>" for each in self.head)
        for group, rows in self.groups.items():
            if group:
                rest = f'<td colspan="{len(self.head) - 1}"></td>'
                body += f'<tr class="group"><th>{escape(group)}</th>{rest}</tr>'
            for row in rows:
                body += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        return f'<div class="scroll"><table class="{css}">{body}</table></div>'


def summaries(metadata: Metadata) -> list[SiteSummary]:
    """Summary of each site, in the order of the metadata."""
    return [_summary(metadata, site) for site in metadata.run.sites]


def _summary(metadata: Metadata, site: Site) -> SiteSummary:
    statistics = metadata.statistics[site]
    norms, largest = statistics.norm_histogram, statistics.max_norm
    quantiles = tuple(min(norms.quantile(each), largest) for each in _QUANTILES)
    median = quantiles[2]
    squares = statistics.mean**2 + statistics.variance
    return SiteSummary(
        site=site,
        vectors=statistics.count + statistics.nonfinite_count,
        nonfinite=statistics.nonfinite_count,
        mean_norm=statistics.mean_norm,
        rms_norm=math.sqrt(statistics.mean_squared_norm),
        max_norm=largest,
        quantiles=quantiles,
        outliers=tuple(norms.count_from(f * median) if median else 0 for f in OUTLIER_FACTORS),
        shares=squares / max(float(squares.sum()), 1e-300),
    )


def massive_dimensions(layers: Sequence[SiteSummary]) -> list[tuple[int, list[Site], float]]:
    """Massive dimensions with their sites and their largest share, largest share first."""
    found: dict[int, tuple[list[Site], float]] = {}
    for layer in layers:
        for dimension in layer.massive_dimensions():
            sites, share = found.get(dimension, ([], 0.0))
            found[dimension] = [*sites, layer.site], max(share, float(layer.shares[dimension]))
    ordered = sorted(found.items(), key=lambda item: (-item[1][1], item[0]))
    return [(dimension, sites, share) for dimension, (sites, share) in ordered]


def facts(metadata: Metadata) -> dict[str, str]:
    """What the dataset is and how it was made, by topic."""
    run = metadata.run
    random = " with random weights" if run.weights.get("random") else ""
    rejected = ", ".join(f"{count:,} {why}" for why, count in sorted(metadata.rejected.items()))
    files = sum(1 + len(shard.files) for shard in metadata.shards)
    return {
        "model": f"{run.model_name}{random}, computed in {run.compute_dtype}",
        "layers": f"{layers_named(run.layers_extracted)}, {run.hidden_dim:,} wide",
        "captured": ", ".join(f"{HOOK_POINTS_EXPLAINED[p]} ({p})" for p in run.hook_points),
        "pooling": f"{run.pooling}: {POOLINGS_EXPLAINED[run.pooling]}",
        "stored as": f"{run.storage_dtype}, little-endian",
        "files": f"{count_of(files, 'file')} in {count_of(len(metadata.shards), 'shard')}, "
        f"{size(total_bytes(metadata))}",
        "non-finite": count_of(
            sum(each.nonfinite_count for each in metadata.statistics.values()), "vector"
        ),
        "rejected": rejected or "no task",
    }


def layer_table(layers: Sequence[SiteSummary]) -> Table:
    """Norms of the sites, 80 letters wide; non-finite vectors have a column if there are any."""
    nonfinite = any(each.nonfinite for each in layers)
    names = ("mean", "rms", "p1", "median", "p99", "max", "max/median")
    head = ["layer", *(["non-finite"] if nonfinite else []), *names]
    head += [f">={factor}x" for factor in OUTLIER_FACTORS]
    rows = []
    for each in layers:
        low, *_, high = each.quantiles
        norms = (each.mean_norm, each.rms_norm, low, each.median_norm, high, each.max_norm)
        row = [str(place_of(each.site)[0]), *([f"{each.nonfinite:,}"] if nonfinite else [])]
        row += [number(norm) for norm in norms]
        row.append(f"{number(each.max_norm / each.median_norm if each.median_norm else 0)}x")
        rows.append([*row, *(f"{count:,}" for count in each.outliers)])
    return Table(head, by_hook_point([each.site for each in layers], rows))


def massive_line(layers: Sequence[SiteSummary], most: int = 8) -> str:
    """Sentence about the massive dimensions, of which the first are named."""
    found = massive_dimensions(layers)
    named = [f"{each} (layers {layers_named(sites)})" for each, sites, _ in found[:most]]
    if len(found) > most:
        named.append(f"and {len(found) - most:,} more")
    return f"Massive dimensions: {', '.join(named) or 'none'}."


def inspect(path: str, metadata: Metadata) -> str:
    """Text for a terminal: facts, and a table of the layers."""
    layers = summaries(metadata)
    lines = [f"{path}: {headline(metadata)}"]
    lines += [f"  {name:<11}{text}" for name, text in facts(metadata).items()]
    lines += ["", "Norms of the vectors of each layer", *layer_table(layers).text()]
    return "\n".join([*lines, "", massive_line(layers), ""])


def headline(metadata: Metadata) -> str:
    """Number of samples, tokens and vectors."""
    return (
        f"{count_of(metadata.total_samples, 'sample')}, "
        f"{count_of(metadata.total_tokens, 'token')}, "
        f"{count_of(metadata.total_vectors, 'vector')} in each layer"
    )


def total_bytes(metadata: Metadata) -> int:
    """Size of all layer files and files of prompts."""
    return sum(
        shard.prompts.bytes + sum(entry.bytes for entry in shard.files.values())
        for shard in metadata.shards
    )


def number(value: float) -> str:
    """Three significant digits or more, without an exponent where that is readable."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e9:
        return f"{value:.2e}"
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:,.{max(0, 2 - exponent)}f}"


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{number(count)} {unit}"
        count /= 1000
    return f"{number(count)} PB"


def count_of(count: int, singular: str) -> str:
    """A count and its noun, such as "1 sample" and "2 samples"."""
    return f"{count:,} {singular}" + ("" if count == 1 else "s")


def layers_named(sites: Sequence[Site]) -> str:
    """Sites by their layers, in ranges where possible: "0, 4, 8-11; 10-23 mlp_out"."""
    parts = []
    for hook_point in dict.fromkeys(place_of(site)[1] for site in sites):
        layers = [layer for layer, each in map(place_of, sites) if each == hook_point]
        suffix = "" if hook_point == DEFAULT_HOOK_POINT else f" {hook_point}"
        parts.append(_ranges(layers) + suffix)
    return "; ".join(parts)


def _ranges(layers: Sequence[int]) -> str:
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][-1] + 1:
            ranges[-1].append(layer)
        else:
            ranges.append([layer])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in ranges)
