"""What the metadata alone says of each layer, for people: no vector is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from activation_dataset.format import Pooling
from activation_dataset.metadata import Metadata
from activation_dataset.sites import DEFAULT_HOOK_POINT, HookPoint, Site, by_hook_point, place_of
from activation_dataset.statistics import LayerStatistics

OUTLIER_FACTORS = (10, 100)
"""A vector is an outlier from this many times its layer's median norm on."""

MASSIVE_FACTOR = 10
"""A dimension is massive from this many times the median root mean square of dimensions on."""

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


@dataclass(frozen=True)
class LayerSummary:
    """One layer in numbers; norms are Euclidean, of the vectors that are finite.

    Attributes:
        layer: which it is, a site.
        vectors: all of them.
        nonfinite: those with a NaN or an infinity.
        mean_norm, rms_norm, max_norm: of the norms.
        low_norm, median_norm, high_norm: quantiles 0.01, 0.5 and 0.99, to within 1/128.
        outliers: vectors of at least 10 and of at least 100 times the median norm.
        massive: the massive dimensions, the largest first.
    """

    layer: Site
    vectors: int
    nonfinite: int
    mean_norm: float
    rms_norm: float
    max_norm: float
    low_norm: float
    median_norm: float
    high_norm: float
    outliers: tuple[int, int]
    massive: tuple[Dimension, ...]

    @property
    def max_to_median(self) -> float:
        """0 where there is no norm to divide by."""
        return self.max_norm / self.median_norm if self.median_norm else 0.0


@dataclass(frozen=True)
class Dimension:
    """A dimension of a layer's vectors.

    Attributes:
        number: which.
        share: of the mean squared norm.
        factor: its root mean square, in medians over all dimensions.
    """

    number: int
    share: float
    factor: float


def summaries(metadata: Metadata) -> list[LayerSummary]:
    """The layers of a dataset, ascending."""
    return [_summary(metadata, layer) for layer in metadata.run.sites]


def massive_dimensions(statistics: LayerStatistics) -> tuple[Dimension, ...]:
    """The dimensions whose root mean square is `MASSIVE_FACTOR` times the median one or more."""
    squares = statistics.mean**2 + statistics.variance
    deviations = np.sqrt(squares)
    median = float(np.median(deviations))
    if not median:
        return ()
    numbers = np.flatnonzero(deviations >= MASSIVE_FACTOR * median)
    total = float(squares.sum())
    return tuple(
        Dimension(number, float(squares[number]) / total, float(deviations[number]) / median)
        for number in sorted(numbers.tolist(), key=lambda number: -squares[number])
    )


def by_dimension(layers: Sequence[LayerSummary]) -> list[tuple[int, list[Site], float]]:
    """Each massive dimension, its layers and its largest share; those with large shares first."""
    found: dict[int, tuple[list[Site], float]] = {}
    for layer in layers:
        for each in layer.massive:
            where, share = found.get(each.number, ([], 0.0))
            found[each.number] = [*where, layer.layer], max(share, each.share)
    ordered = sorted(found.items(), key=lambda item: (-item[1][1], item[0]))
    return [(number, where, share) for number, (where, share) in ordered]


def layer_table(
    layers: Sequence[LayerSummary],
) -> tuple[tuple[str, ...], dict[str, list[tuple[str, ...]]]]:
    """The norms of the layers as a table of text, 80 letters wide.

    Returns:
        Its head, and its rows as `by_hook_point` has them, a layer each. Vectors that are not
        finite have a column if there are any.
    """
    nonfinite = any(each.nonfinite for each in layers)
    head = (
        "layer",
        *(["non-finite"] if nonfinite else []),
        "mean",
        "rms",
        "p1",
        "median",
        "p99",
        "max",
        "max/median",
        *(f">={factor}x" for factor in OUTLIER_FACTORS),
    )
    rows = [
        (
            str(place_of(each.layer)[0]),
            *([f"{each.nonfinite:,}"] if nonfinite else []),
            number(each.mean_norm),
            number(each.rms_norm),
            number(each.low_norm),
            number(each.median_norm),
            number(each.high_norm),
            number(each.max_norm),
            f"{number(each.max_to_median)}x",
            *(f"{count:,}" for count in each.outliers),
        )
        for each in layers
    ]
    return head, by_hook_point([each.layer for each in layers], rows)


def number(value: float) -> str:
    """Three significant digits or more, without an exponent where that is readable."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e9:
        return f"{value:.2e}"
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:,.{max(0, 2 - exponent)}f}"


def size(count: float) -> str:
    """Bytes in decimal units, as disks and bills count."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{number(count)} {unit}"
        count /= 1000
    return f"{number(count)} PB"


def count_of(count: int, singular: str, plural: str = "") -> str:
    """A count and its noun, such as "1 sample" and "2 samples"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def layers_named(sites: Sequence[Site]) -> str:
    """Sites by their layers, in ranges where they are such: "0, 4, 8-11; 10-23 mlp_out"."""
    parts = []
    for hook_point in dict.fromkeys(place_of(site)[1] for site in sites):
        layers = [layer for layer, each in map(place_of, sites) if each == hook_point]
        of = "" if hook_point == DEFAULT_HOOK_POINT else f" {hook_point}"
        parts.append(_ranges(layers) + of)
    return "; ".join(parts)


def _ranges(layers: Sequence[int]) -> str:
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][-1] + 1:
            ranges[-1].append(layer)
        else:
            ranges.append([layer])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in ranges)


def headline(metadata: Metadata) -> str:
    """Samples, tokens and vectors."""
    counts = {
        "sample": metadata.total_samples,
        "token": metadata.total_tokens,
        "vector": metadata.total_vectors,
    }
    return ", ".join(count_of(count, noun) for noun, count in counts.items()) + " in each layer"


def total_bytes(metadata: Metadata) -> int:
    """Size of all layer files and files of prompts."""
    return sum(
        batch.prompts.bytes + sum(entry.bytes for entry in batch.files.values())
        for batch in metadata.shards
    )


def _summary(metadata: Metadata, layer: Site) -> LayerSummary:
    statistics = metadata.statistics[layer]
    norms, largest = statistics.norm_histogram, statistics.max_norm
    median = min(norms.median, largest)
    few, fewer = (norms.count_from(factor * median) if median else 0 for factor in OUTLIER_FACTORS)
    return LayerSummary(
        layer=layer,
        vectors=statistics.count + statistics.nonfinite_count,
        nonfinite=statistics.nonfinite_count,
        mean_norm=statistics.mean_norm,
        rms_norm=math.sqrt(statistics.mean_squared_norm),
        max_norm=largest,
        low_norm=min(norms.quantile(0.01), largest),
        median_norm=median,
        high_norm=min(norms.quantile(0.99), largest),
        outliers=(few, fewer),
        massive=massive_dimensions(statistics),
    )
