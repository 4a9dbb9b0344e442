"""Command `export`, which writes sites to files for trainers of sparse autoencoders."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from activation_dataset.exporters import Exported, ExportError, sae_lens, safetensors
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.sites import Site, parse_site

EXPORTERS: dict[str, Callable[..., Exported]] = {
    "sae_lens": sae_lens.export,
    "dictionary_learning": safetensors.export_batches,
    "safetensors": safetensors.export_vectors,
}
"""Exporter function for each value of --to."""

# Options of a single exporter: name of the exporter, smallest value, help text.
_OPTIONS = {
    "context_size": ("sae_lens", 1, "vectors per row (default: 128)"),
    "batch_size": ("dictionary_learning", 1, "vectors per batch (default: 4096)"),
    "seed": ("dictionary_learning", 0, "seed of the shuffle (default: 0)"),
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    command.add_argument("folder", metavar="DIR", help="dataset: a folder or a gs:// URL")
    command.add_argument("out", metavar="OUT", type=Path, help="folder to create")
    command.add_argument("--to", required=True, choices=EXPORTERS, help="format of the export")
    command.add_argument(
        "--layer",
        required=True,
        type=_site,
        nargs="+",
        metavar="LAYER",
        help="layer numbers, or names such as blocks.10.hook_mlp_out",
    )
    for name, (exporter, least, text) in _OPTIONS.items():
        command.add_argument(f"--{name}", type=at_least(least), help=f"{exporter}: {text}")


def run(arguments: argparse.Namespace) -> int:
    """Run the export, print how to load the result, and return the exit code.

    Raises:
        ExportError: if the arguments do not fit the dataset, or the output folder exists.
    """
    options = {name: value for name in _OPTIONS if (value := getattr(arguments, name)) is not None}
    for name in options:
        if (exporter := _OPTIONS[name][0]) != arguments.to:
            raise ExportError(f"--{name} needs --to {exporter}, got --to {arguments.to}")
    dataset = ActivationDataset(arguments.folder)
    sites = []
    for named in dict.fromkeys(arguments.layer):
        try:
            sites.append(dataset.metadata.run.site(named))
        except KeyError:
            raise ExportError(
                f"--layer {named} is not in the dataset, which has {dataset.sites}"
            ) from None
    exported = EXPORTERS[arguments.to](dataset, sites, arguments.out, **options)
    layers = f"layer {sites[0]}" if len(sites) == 1 else f"each of {len(sites)} layers"
    print(f"{exported.vectors} vectors of {layers} in {arguments.out}", end="")
    if exported.left_out:
        print(f"; {exported.left_out} left out, too few for a row or batch", end="")
    print()
    print(f"To load them:\n\n{exported.how_to_load}")
    return 0


def at_least(least: int) -> Callable[[str], int]:
    """Return an argparse type for integers with a lower bound."""

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
