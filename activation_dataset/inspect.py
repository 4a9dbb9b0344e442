"""A dataset in a terminal: what it is, a table of its layers, and on request what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from activation_dataset.metadata import Metadata
from activation_dataset.sites import site_label
from activation_dataset.summary import (
    MASSIVE_FACTOR,
    OUTLIER_FACTORS,
    POOLINGS_EXPLAINED,
    TABLE_HEAD,
    LayerSummary,
    by_dimension,
    count_of,
    headline,
    layers_named,
    number,
    size,
    summaries,
    table_rows,
    total_bytes,
)
from activation_dataset.survey import Survey
from activation_dataset.survey_layer import KINDS, POSITION_STARTS
from activation_dataset.survey_prompts import PromptSurvey

_DIMENSIONS_NAMED = 8


def inspect(path: str, metadata: Metadata) -> str:
    """What the metadata says: nothing else is read."""
    layers = summaries(metadata)
    blocks = [[f"{path}: {headline(metadata)}", *_facts(metadata)]]
    blocks.append(_table([TABLE_HEAD, *table_rows(layers)]))
    blocks.append(_massive(layers))
    return _text(blocks)


def inspect_vectors(metadata: Metadata, found: Survey) -> str:
    """What only the vectors say."""
    layers = summaries(metadata)
    blocks = [
        ["prompts", *(f"  {line}" for line in prompt_lines(found.prompts))],
        _positions(layers, found),
        _kinds(layers, found),
        _outliers(found),
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


def _facts(metadata: Metadata) -> Iterator[str]:
    run = metadata.run
    weights = " (random weights)" if run.weights.get("random") else ""
    files = sum(1 + len(batch.files) for batch in metadata.batches)
    rejected = ", ".join(
        f"{count:,} {reason}" for reason, count in sorted(metadata.rejected.items())
    )
    facts = {
        "model": f"{run.model_name}{weights}, computed in {run.compute_dtype}",
        "layers": f"{len(run.layers_extracted)} ({layers_named(run.layers_extracted)}), "
        f"{run.hidden_dim:,} wide, {', '.join(run.hook_points)}",
        "pooling": f"{run.pooling}: {POOLINGS_EXPLAINED[run.pooling]}",
        "stored as": f"{run.storage_dtype}, little-endian",
        "files": f"{count_of(files, 'file')} in {count_of(len(metadata.batches), 'shard')}, "
        f"{size(total_bytes(metadata))}",
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
    head = ["layer"]
    rows = [[site_label(layer.layer)] for layer in layers]
    for octave in used.tolist():
        within = octaves == octave
        first, last = 2**octave - 1, 2 ** (octave + 1) - 2
        head.append(f"{first}-{last}" if octave else "0")
        means = sums[:, within].sum(axis=1) / np.maximum(counts[:, within].sum(axis=1), 1)
        for row, layer, mean in zip(rows, layers, means.tolist(), strict=True):
            row.append(number(mean / layer.median_norm) if layer.median_norm else "-")
    return ["mean norm by position, in medians of the layer", *_table([head, *rows])]


def _kinds(layers: Sequence[LayerSummary], found: Survey) -> list[str]:
    """Mean norms by what tokens show, in medians."""
    if not any(each.kinds[:2, 0].any() for each in found.layers):
        return []
    rows: list[Sequence[str]] = [("layer", *KINDS)]
    for layer, each in zip(layers, found.layers, strict=True):
        norms = [
            number(mean / layer.median_norm) if count and layer.median_norm else "-"
            for count, mean in each.kinds.tolist()
        ]
        rows.append((site_label(layer.layer), *norms))
    return ["mean norm by what the token shows, in medians of the layer", *_table(rows)]


def _outliers(found: Survey) -> list[str]:
    title = f"outliers, of {OUTLIER_FACTORS[0]} times the median norm or more"
    if not found.outliers:
        return [f"{title}: none among the vectors that were read"]
    lines = [
        f"  {number(each.factor):>5}x in layer {site_label(each.layer)}: {each.origin}"
        for each in found.outliers
    ]
    return [f"{title}; the largest:", *lines]


def _likeness(metadata: Metadata, found: Survey) -> list[str]:
    if found.likeness is None:
        return []
    names = [site_label(site) for site in metadata.run.sites]
    values = found.likeness.alignment
    rows = [
        (name, number(effective), f"{explained.sum():.0%}", f"{values[0, n]:.2f}", f"{next_:.2f}")
        for n, (name, effective, explained, next_) in enumerate(
            zip(
                names,
                found.likeness.dimensions.tolist(),
                found.likeness.explained,
                [*np.diag(values, 1).tolist(), 1.0],
                strict=True,
            )
        )
    ]
    rows[-1] = (*rows[-1][:-1], "-")
    head = ("layer", "dimensions", "in 2 of them", f"like layer {names[0]}", "like the next")
    title = (
        f"spread and likeness (participation ratio, linear CKA) of "
        f"{count_of(len(found.likeness.vectors), 'vector')} that are no outliers"
    )
    return [title, *_table([head, *rows])]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def _text(blocks: Sequence[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"
