"""A dataset in a terminal: what it is, a table of its layers, and on request what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from activation_dataset.metadata import Metadata
from activation_dataset.reporting.summary import (
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
from activation_dataset.reporting.survey_prompts import PromptSurvey
from activation_dataset.sites import Row, by_hook_point, place_of, site_labels

_DIMENSIONS_NAMED = 8


def inspect(path: str, metadata: Metadata) -> str:
    """What the metadata says: nothing else is read."""
    layers = summaries(metadata)
    blocks = [[f"{path}: {headline(metadata)}", *_facts(metadata, layers)]]
    blocks.append(["norms of the vectors of each layer", *_table(*layer_table(layers))])
    blocks.append(_massive(layers))
    return _text(blocks)


def inspect_vectors(metadata: Metadata, found: Survey) -> str:
    """What only the vectors say."""
    layers = summaries(metadata)
    blocks = [
        ["prompts", *(f"  {line}" for line in prompt_lines(found.prompts))],
        _positions(layers, found),
        _kinds(layers, found),
        _outliers(metadata, found),
        _likeness(metadata, found),
    ]
    return _text(blocks)


def prompt_lines(prompts: PromptSurvey) -> list[str]:
    """Lengths and repetitions, in sentences."""
    lengths = prompts.lengths
    if not len(lengths):
        return ["none"]
    p5, median, p95 = np.quantile(lengths, [0.05, 0.5, 0.95], method="nearest").tolist()
    lines = [
        f"{count_of(len(lengths), 'prompt')} of {lengths.min():,} to {lengths.max():,} tokens, "
        f"median {median:,}, nine in ten within {p5:,} and {p95:,}"
    ]
    if not prompts.repeated:
        return [*lines, "no prompt has the same tokens as another"]
    verb = "has" if prompts.repeated == 1 else "have"
    lines.append(f"{count_of(prompts.repeated, 'prompt')} {verb} the tokens of an earlier one:")
    return [*lines, *(f"  {again} = {first}" for first, again in prompts.examples)]


def _facts(metadata: Metadata, layers: Sequence[LayerSummary]) -> Iterator[str]:
    run = metadata.run
    weights = " (random weights)" if run.weights.get("random") else ""
    files = sum(1 + len(batch.files) for batch in metadata.shards)
    rejected = ", ".join(
        f"{count:,} {reason}" for reason, count in sorted(metadata.rejected.items())
    )
    facts = {
        "model": f"{run.model_name}{weights}, computed in {run.compute_dtype}",
        "layers": f"{len(run.layers_extracted)} ({layers_named(run.layers_extracted)}), "
        f"{run.hidden_dim:,} wide, {', '.join(run.hook_points)}",
        "pooling": f"{run.pooling}: {POOLINGS_EXPLAINED[run.pooling]}",
        "stored as": f"{run.storage_dtype}, little-endian",
        "files": f"{count_of(files, 'file')} in {count_of(len(metadata.shards), 'shard')}, "
        f"{size(total_bytes(metadata))}",
        "non-finite": count_of(sum(layer.nonfinite for layer in layers), "vector"),
        "rejected": rejected or "no task",
    }
    for name, text in facts.items():
        yield f"  {name:<11}{text}"


def _massive(layers: Sequence[LayerSummary]) -> list[str]:
    found = by_dimension(layers)
    title = f"massive dimensions, of {MASSIVE_FACTOR} times the median root mean square or more"
    if not found:
        return [f"{title}: none"]
    lines = [
        f"  {dimension:>5}: layers {layers_named(where)}, up to {share:.0%} of the squared norm"
        for dimension, where, share in found[:_DIMENSIONS_NAMED]
    ]
    more = len(found) - len(lines)
    return [f"{title}:", *lines, *([f"  and {more:,} more"] if more > 0 else [])]


def _positions(layers: Sequence[LayerSummary], found: Survey) -> list[str]:
    """Mean norms by position, in medians, a column for each power of two."""
    octaves = np.log2(POSITION_STARTS + 1).astype(int)
    counts = np.array([each.position_counts for each in found.layers])
    sums = counts * np.array([each.position_norms for each in found.layers])
    used = np.flatnonzero(np.bincount(octaves, counts.sum(axis=0)))
    if not len(used):
        return []
    head = ["from"]
    rows = [_start(layer) for layer in layers]
    for octave in used.tolist():
        within = octaves == octave
        head.append(str(2**octave - 1))
        means = sums[:, within].sum(axis=1) / np.maximum(counts[:, within].sum(axis=1), 1)
        for row, layer, mean in zip(rows, layers, means.tolist(), strict=True):
            row.append(_medians(mean, layer))
    title = "mean norm by position, each column from one on, in medians of the layer"
    return [title, *_table(head, _grouped(layers, rows))]


def _kinds(layers: Sequence[LayerSummary], found: Survey) -> list[str]:
    """Mean norms by what tokens show, in medians."""
    if not any(each.kinds[:2, 0].any() for each in found.layers):
        return []
    rows = [
        _start(layer)
        + [_medians(mean, layer) if count else "-" for count, mean in each.kinds.tolist()]
        for layer, each in zip(layers, found.layers, strict=True)
    ]
    title = "mean norm by what the token shows, in medians of the layer"
    return [title, *_table(("layer", *KINDS), _grouped(layers, rows))]


def _outliers(metadata: Metadata, found: Survey) -> list[str]:
    title = f"outliers, of {OUTLIER_FACTORS[0]} times the median norm or more"
    if not found.outliers:
        return [f"{title}: none among the vectors that were read"]
    sites = metadata.run.sites
    names = dict(zip(sites, site_labels(sites), strict=True))
    lines = [
        f"  {number(each.factor):>5}x in layer {names[each.layer]}: {each.origin}"
        for each in found.outliers
    ]
    return [f"{title}; the largest:", *lines]


def _likeness(metadata: Metadata, found: Survey) -> list[str]:
    likeness, sites = found.likeness, metadata.run.sites
    if likeness is None:
        return []
    rows = []
    for places in by_hook_point(sites, range(len(sites))).values():
        for place in places:
            like_next = likeness.alignment[place, place + 1] if place != places[-1] else None
            rows.append(
                (
                    str(place_of(sites[place])[0]),
                    number(likeness.dimensions[place]),
                    f"{likeness.explained[place].sum():.0%}",
                    f"{likeness.alignment[places[0], place]:.2f}",
                    "-" if like_next is None else f"{like_next:.2f}",
                )
            )
    head = ("layer", "dimensions", "in 2 of them", "like the first", "like the next")
    title = (
        f"spread and likeness (participation ratio, linear CKA) of "
        f"{count_of(len(likeness.vectors), 'vector')} that are no outliers"
    )
    return [title, *_table(head, by_hook_point(sites, rows))]


def _start(layer: LayerSummary) -> list[str]:
    """A row that begins with the layer's number."""
    return [str(place_of(layer.layer)[0])]


def _medians(norm: float, layer: LayerSummary) -> str:
    """A norm in medians of the layer, in few characters."""
    if not layer.median_norm:
        return "-"
    factor = norm / layer.median_norm
    return f"{factor:.2f}" if factor < 99.5 else f"{factor:.0f}"


def _grouped(layers: Sequence[LayerSummary], rows: Sequence[Row]) -> dict[str, list[Row]]:
    return by_hook_point([layer.layer for layer in layers], rows)


def _table(head: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """Lines of a table; rows are below the names of their groups, which may be empty."""
    rows = [head, *(row for rows in groups.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        return "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))

    lines = [line(head)]
    for group, rows_of_group in groups.items():
        lines += [f"{group}:"] if group else []
        lines += map(line, rows_of_group)
    return lines


def _text(blocks: Sequence[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"
