"""The dataset's card, a README.md beside metadata.json, as the Hugging Face hub shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from activation_dataset.fields import FieldError, Fields
from activation_dataset.metadata import Metadata
from activation_dataset.reporting.summary import (
    HOOK_POINTS_EXPLAINED,
    POOLINGS_EXPLAINED,
    by_dimension,
    count_of,
    headline,
    layer_table,
    layers_named,
    size,
    summaries,
    total_bytes,
)

CARD_FILE = "README.md"

UNKNOWN_LICENSE = "unknown"

_MARK = "# Written with the dataset, and again whenever it is, unless this line is gone."
_LICENSE = re.compile(r"^license: ([a-z0-9][a-z0-9.-]*)$", re.MULTILINE)
_SIZES = (("n<1K", 10**3), *((f"{a}<n<{b}", n) for a, b, n in (
    ("1K", "10K", 10**4), ("10K", "100K", 10**5), ("100K", "1M", 10**6), ("1M", "10M", 10**7),
    ("10M", "100M", 10**8), ("100M", "1B", 10**9), ("1B", "10B", 10**10),
)))  # fmt: skip
_FILES_NAMED = 20


class CardError(ValueError):
    """A card that cannot be written; says why and what to do."""


def renewed_card(
    metadata: Metadata,
    present: bytes | None = None,
    certificate: bytes | None = None,
    license: str | None = None,
) -> str | None:
    """The card, or None if the one that is there was written by somebody else.

    Args:
        metadata: of the dataset.
        present: the README.md that is there, whose licence is kept.
        certificate: the certificate.json that is there; left out if it is of another dataset.
        license: of the tasks, as an identifier of the hub such as "apache-2.0".

    Raises:
        CardError: the licence is no such identifier.
    """
    text = "" if present is None else present.decode("utf-8", "replace")
    if present is not None and _MARK not in text.splitlines()[:3]:
        return None
    if license is None:
        kept = _LICENSE.search(text)
        license = kept[1] if kept else UNKNOWN_LICENSE
    elif not _LICENSE.fullmatch(f"license: {license}"):
        raise CardError(
            f"{license!r} is no identifier of a licence, such as apache-2.0, cc-by-4.0 or other"
        )
    sections = [
        *_front_matter(metadata, license),
        f"# {_title(metadata)}",
        *_description(metadata),
        *_loading(metadata),
        *_statistics(metadata),
        *_certificate(metadata, certificate),
        *_origin(metadata, license),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(metadata: Metadata, license: str) -> Iterator[str]:
    bounds = [name for name, bound in _SIZES if metadata.total_samples < bound]
    lines = [
        "---",
        _MARK,
        f"license: {license}",
        f"pretty_name: {json.dumps(_title(metadata), ensure_ascii=False)}",
        "tags:",
        "- activations",
        "- interpretability",
        "- sparse-autoencoder",
        "- tfrecord",
        "size_categories:",
        f"- {bounds[0] if bounds else 'n>1T'}",
        "viewer: false",
        "---",
    ]
    yield "\n".join(lines)


def _title(metadata: Metadata) -> str:
    run = metadata.run
    noun = "layer" if len(run.layers_extracted) == 1 else "layers"
    return _plain(f"Activations of {run.model_name}, {noun} {layers_named(run.layers_extracted)}")


def _description(metadata: Metadata) -> Iterator[str]:
    run = metadata.run
    random = ", **with random weights**," if run.weights.get("random") else ""
    yield (
        f"What {_code(run.model_name)}{random} computes inside, layer by layer: "
        f"{headline(metadata)}."
    )
    rejected = sum(metadata.rejected.values())
    captured = ", ".join(
        f"{HOOK_POINTS_EXPLAINED[each]} ({_code(f'blocks.{{layer}}.hook_{each}')})"
        for each in run.hook_points
    )
    facts = [
        ("captured", f"{captured}, {POOLINGS_EXPLAINED[run.pooling]}"),
        ("layers", f"{layers_named(run.layers_extracted)}, counted from 0"),
        (
            "vectors",
            f"{run.hidden_dim:,} wide, {run.storage_dtype}; computed in {run.compute_dtype}",
        ),
        (
            "prompt template",
            f"{_code(str(run.prompt_template.get('name', '')))}, whole in `metadata.json`",
        ),
        ("weights", _code(str(run.weights["fingerprint"]))),
        ("tokenizer", _code(str(run.tokenizer["fingerprint"]))),
        ("size", f"{size(total_bytes(metadata))} in {count_of(len(metadata.shards), 'shard')}"),
        ("rejected", f"{count_of(rejected, 'task')}" + (", in `errors/`" if rejected else "")),
    ]
    yield _table(("", ""), facts)


def _loading(metadata: Metadata) -> Iterator[str]:
    layer = metadata.run.sites[0]
    batch_size = max(1, min(4096, metadata.total_vectors))
    yield "## Load it"
    yield (
        "```python\n"
        "from activation_dataset import ActivationDataset  # needs numpy and google-crc32c only\n"
        'dataset = ActivationDataset("this/folder")  # or a URL\n'
        f"for batch in dataset.batches({layer!r}, {batch_size}): ...  # shuffled; batch.values is "
        f"[{batch_size}, {metadata.run.hidden_dim}] float32\n"
        "```"
    )
    yield (
        "The files are TFRecords of `tf.train.Example`, one record for each sample, with the same "
        "samples in the same order in every layer; `prompts/` has every prompt's token ids, and "
        "the cell of a grid that each token shows. `python -m activation_dataset verify` checks "
        "every byte, `report` draws what is in it."
    )


def _statistics(metadata: Metadata) -> Iterator[str]:
    layers = summaries(metadata)
    yield "## Statistics"
    yield (
        "Euclidean norms of each layer's vectors. The last two columns count the vectors of at "
        "least 10 and 100 times the median norm: none is left out, readers can filter by norm."
    )
    head, groups = layer_table(layers)
    for hook_point, rows in groups.items():
        if hook_point:
            yield f"### {_code(hook_point)}"
        yield _table(head, rows)
    massive = by_dimension(layers)
    if massive:
        named = ", ".join(
            f"{dimension} (layers {layers_named(where)})" for dimension, where, _ in massive[:8]
        )
        more = f" and {len(massive) - 8} more" if len(massive) > 8 else ""
        yield f"Dimensions with massive activations: {named}{more}."


def _certificate(metadata: Metadata, certificate: bytes | None) -> Iterator[str]:
    if certificate is None:
        return
    try:
        fields = Fields(json.loads(certificate), "certificate.json")
        if fields.text("metadata_sha256") != json.loads(metadata.to_json())["metadata_sha256"]:
            return
        samples, vectors = fields.items("samples"), fields.integer("vectors")
        tolerance, reference = fields.number("tolerance"), fields.text("reference")
        errors = {
            layer: Fields(value, f"layers.{layer}").number("relative_error")
            for layer, value in fields.mapping("layers").items()
        }
    except (ValueError, FieldError):
        return
    worst = max(errors, key=lambda layer: errors[layer])
    verdict = "within" if errors[worst] <= tolerance else "**past**"
    yield "## Certificate"
    yield (
        f"{count_of(len(samples), 'sample')}, {count_of(vectors, 'vector')} in each layer, were "
        f"computed again by {_plain(reference)}. The largest relative error, {errors[worst]:.2e} "
        f"in layer {_plain(worst)}, is {verdict} the tolerance of {tolerance:g}. "
        "`certificate.json` has all layers."
    )


def _origin(metadata: Metadata, license: str) -> Iterator[str]:
    inputs = metadata.run.inputs
    yield "## Tasks and their licence"
    if license == UNKNOWN_LICENSE:
        yield (
            "The tasks' licence is not known to the job that wrote this. Find out before you share "
            "the dataset; `python -m activation_dataset card this/folder --license ID` writes it "
            "here."
        )
    else:
        yield f"The licence of the tasks was given as `{license}`."
    rows = [
        (_code(each.path), size(each.bytes), _code(each.sha256)) for each in inputs[:_FILES_NAMED]
    ]
    if rows:
        yield f"Read from {count_of(len(inputs), 'file')}:"
        yield _table(("file", "size", "SHA-256"), rows)
    if len(inputs) > len(rows):
        yield f"and {len(inputs) - len(rows):,} more, which `metadata.json` lists."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _code(text: str) -> str:
    """Any text as code, also in a table."""
    return f"`{_plain(text).replace('`', chr(39)).replace('|', '¦')}`"


def _plain(text: str) -> str:
    """On one line."""
    return " ".join(text.split())
