"""Dataset card for the Hugging Face hub: a README.md next to metadata.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from activation_dataset.certify import quote_certificate
from activation_dataset.metadata import Metadata
from activation_dataset.reporting.summary import (
    count_of,
    facts,
    layer_table,
    massive_line,
    size,
)
from activation_dataset.sites import layers_named

CARD_FILE = "README.md"

UNKNOWN_LICENSE = "unknown"

_MARK = "# Generated with the dataset. Remove this line to keep your changes."
_LICENSE = re.compile(r"^license: ([a-z0-9][a-z0-9.-]*)$", re.MULTILINE)
_FILES_NAMED = 20


class CardError(ValueError):
    """Error for a card that cannot be written. The message gives the reason and the remedy."""


def renewed_card(
    metadata: Metadata,
    present: bytes | None = None,
    certificate: bytes | None = None,
    license: str | None = None,
) -> str | None:
    """Return the text of the card, or None if somebody else wrote the existing card.

    Args:
        metadata: metadata of the dataset.
        present: content of the existing README.md, whose license is kept.
        certificate: content of certificate.json; ignored if it belongs to another dataset.
        license: license of the tasks, an identifier of the hub such as "apache-2.0".

    Raises:
        CardError: if the license is not an identifier of the hub.
    """
    text = "" if present is None else present.decode("utf-8", "replace")
    if present is not None and _MARK not in text.splitlines()[:3]:
        return None
    if license is None:
        kept = _LICENSE.search(text)
        license = kept[1] if kept else UNKNOWN_LICENSE
    elif not _LICENSE.fullmatch(f"license: {license}"):
        raise CardError(
            f"--license {license!r} is not an identifier of the Hugging Face hub: give an "
            "identifier such as apache-2.0, cc-by-4.0 or other"
        )
    run = metadata.run
    model = " ".join(run.model_name.split())
    title = f"Activations of {model}, layers {layers_named(run.layers_extracted)}"
    front = [
        _MARK,
        f"license: {license}",
        f"pretty_name: {json.dumps(title, ensure_ascii=False)}",
        "tags: [activations, interpretability, sparse-autoencoder, tfrecord]",
        "viewer: false",
    ]
    sections = [
        "\n".join(["---", *front, "---"]),
        f"# {_escaped(title)}",
        _table(("", "", ""), facts(metadata)),
        *_loading(metadata),
        *_statistics(metadata),
        *_certificate(metadata, certificate),
        *_origin(metadata, license),
    ]
    return "\n\n".join(sections) + "\n"


def _loading(metadata: Metadata) -> Iterator[str]:
    batch_size = max(1, min(4096, metadata.total_vectors))
    first = metadata.run.sites[0]
    yield "## Usage"
    yield (
        "```python\n"
        "from activation_dataset import ActivationDataset  # needs only numpy and google-crc32c\n"
        'dataset = ActivationDataset("this/folder")  # or a URL\n'
        f"for batch in dataset.batches({first!r}, {batch_size}): ...  # shuffled; "
        f"batch.values is [{batch_size}, {metadata.run.width(first)}] float32\n"
        "```"
    )
    yield (
        "The files are TFRecords of `tf.train.Example`, one record for each sample, with the same "
        "samples in the same order in every layer. `prompts/` has the token ids of each prompt and "
        "the grid cell that each token shows. `python -m activation_dataset verify` checks every "
        "file, and `report` writes an HTML report. `metadata.json` has the prompt template, the "
        "fingerprints of the weights and the tokenizer, and all settings. `errors/` lists the "
        "rejected inputs. A record with the feature `truncated_tokens` belongs to a document whose "
        "end was cut off."
    )


def _statistics(metadata: Metadata) -> Iterator[str]:
    yield "## Statistics"
    yield (
        "Euclidean norms of the vectors of each layer. The columns after max/median count vectors "
        "with at least 10 and 100 times the median norm. The dataset contains these vectors; "
        "readers can filter by norm."
    )
    table = layer_table(metadata)
    for hook_point, rows in table.groups.items():
        if hook_point:
            yield f"### {hook_point}"
        yield _table(table.head, rows)
    yield massive_line(metadata)


def _certificate(metadata: Metadata, certificate: bytes | None) -> Iterator[str]:
    quoted = quote_certificate(certificate, metadata) if certificate is not None else None
    if quoted:
        yield "## Certificate"
        yield f"{quoted} `certificate.json` has all layers."


def _origin(metadata: Metadata, license: str) -> Iterator[str]:
    inputs = metadata.run.inputs
    yield "## Tasks and license"
    if license == UNKNOWN_LICENSE:
        yield (
            "The job does not know the license of the tasks. Before you share the dataset, find "
            "the license and run `python -m activation_dataset card this/folder --license ID`."
        )
    else:
        yield f"License of the tasks: `{license}`."
    if inputs:
        yield f"The tasks come from {count_of(len(inputs), 'file')}; `metadata.json` lists all:"
        rows = [(each.path, size(each.bytes), each.sha256) for each in inputs[:_FILES_NAMED]]
        yield _table(("file", "size", "SHA-256"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _escaped(text: str) -> str:
    """Return text on one line, with a backslash before characters that Markdown interprets."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
