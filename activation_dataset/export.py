"""The command `export`: a layer as what a trainer of sparse autoencoders loads from disk."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from activation_dataset.exporters import dictionary_learning, sae_lens, safetensors
from activation_dataset.exporters.exported import Exported, ExportError
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.sites import Site, parse_site

EXPORTERS: dict[str, Callable[..., Exported]] = {
    "sae_lens": sae_lens.export,
    "dictionary_learning": dictionary_learning.export,
    "safetensors": safetensors.export,
}
"""For whom it is, to what writes it."""

# Option to the exporter that it belongs to.
_OPTIONS = {
    "context_size": "sae_lens",
    "batch_size": "dictionary_learning",
    "seed": "dictionary_learning",
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    command.add_argument("folder", metavar="DIR", help="the dataset: a folder, or a gs:// URL")
    command.add_argument("out", metavar="OUT", type=Path, help="folder to write, must not exist")
    command.add_argument("--to", required=True, choices=EXPORTERS, help="who is to load it")
    command.add_argument(
        "--layer",
        required=True,
        type=_site,
        metavar="LAYER",
        help="number of the layer, or a name such as blocks.10.hook_mlp_out",
    )
    command.add_argument(
        "--context_size", type=at_least(1), help="sae_lens: vectors of a row (default: 128)"
    )
    command.add_argument(
        "--batch_size",
        type=at_least(1),
        help="dictionary_learning: vectors of a batch (default: 4096)",
    )
    command.add_argument(
        "--seed",
        type=at_least(0),
        help="dictionary_learning: of the order of the vectors (default: 0)",
    )


def at_least(least: int) -> Callable[[str], int]:
    """Reads an argument that is a whole number, not below another."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {least}, got {text!r}"
            )
        return int(text)

    return number


def _site(text: str) -> Site:
    try:
        return parse_site(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: argparse.Namespace) -> int:
    """Exports, says what was written and how to load it, and returns the exit code.

    Raises:
        ExportError: an argument that does not fit the dataset or the exporter, or there is
            something at OUT already.
    """
    options: dict[str, Any] = {}
    for name, exporter in _OPTIONS.items():
        value = getattr(arguments, name)
        if value is not None:
            if exporter != arguments.to:
                raise ExportError(f"--{name} is for --to {exporter}, not for {arguments.to}")
            options[name] = value
    dataset = ActivationDataset(arguments.folder)
    try:
        site = dataset.metadata.run.site(arguments.layer)
    except KeyError:
        raise ExportError(f"there is no layer {arguments.layer}, only {dataset.sites}") from None
    exported = EXPORTERS[arguments.to](dataset, site, arguments.out, **options)
    print(f"{exported.vectors} vectors of layer {arguments.layer} in {arguments.out}", end="")
    print(f", {exported.left_out} left out that fill no row or batch" * (exported.left_out > 0))
    print(f"To load them:\n\n{exported.how_to_load}")
    return 0
