"""python -m activation_dataset: commands on a dataset."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from activation_dataset import export
from activation_dataset.certify import CERTIFICATE_FILE, CertifyError, certify
from activation_dataset.exporters.exported import ExportError
from activation_dataset.folder import Folder
from activation_dataset.index_file import keep_indexes
from activation_dataset.reading.reader import ActivationDataset, DatasetError
from activation_dataset.reporting.card import CARD_FILE, CardError, renewed_card
from activation_dataset.reporting.inspect import inspect, inspect_vectors
from activation_dataset.reporting.report import report
from activation_dataset.reporting.summary import count_of
from activation_dataset.reporting.survey import survey
from activation_dataset.sites import site_label
from activation_dataset.tfrecord import ADVICE, CorruptRecordError
from activation_dataset.verifying.dataset import verify

# Below this size, starting workers takes longer than reading.
_SMALL_BYTES = 256 << 20

EXPLAINED = (
    OSError,
    ImportError,
    DatasetError,
    CorruptRecordError,
    CertifyError,
    CardError,
    ExportError,
)
"""Errors whose message says all that a user needs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 good, 1 problems found, 2 could not look."""
    parser = argparse.ArgumentParser(prog="python -m activation_dataset")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "verify",
        help="check every byte of a dataset",
        description="Checks every byte of a dataset and prints all that is wrong, a line each: "
        "file, what is wrong, what to do. Exits with 1 if anything is.",
    )
    command.add_argument("folder", metavar="DIR", help="the dataset: a folder, or a gs:// URL")
    command.add_argument(
        "--repair-list",
        action="store_true",
        help="print only the files that running the job again would write again",
    )
    command.set_defaults(
        run=lambda options: _verify(options.folder, options.repair_list), done="verified"
    )
    command = commands.add_parser(
        "certify",
        help="compare a sample of a dataset with Hugging Face transformers",
        description="Computes some samples again with Hugging Face transformers in float32, writes "
        f"the worst errors of each layer to {CERTIFICATE_FILE} beside the metadata, and exits with "
        "1 if they are past the tolerance. Needs torch and transformers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("folder", metavar="DIR", help="the dataset: a folder, or a gs:// URL")
    command.add_argument(
        "--model_path", required=True, metavar="FOLDER", help="the checkpoint that it was made with"
    )
    command.add_argument("--samples", type=int, default=16, help="how many samples to compute")
    command.add_argument(
        "--seed", type=export.at_least(0), default=0, help="of the choice of samples"
    )
    command.add_argument(
        "--tolerance",
        type=float,
        metavar="ERROR",
        help="largest relative error of a vector (default: what rounding explains, by dtype)",
    )
    command.set_defaults(run=_certify, done="certified")
    command = commands.add_parser(
        "index",
        help="make a dataset's indexes, so that none is made while it is read",
        description="Makes the index of every shard that has none, or a stale one, beside the "
        "dataset. Reading does so by itself in a local folder; do it before a dataset is uploaded, "
        "or for a gs:// URL.",
    )
    command.add_argument("folder", metavar="DIR", help="the dataset: a folder, or a gs:// URL")
    command.set_defaults(run=_index, done="indexed")
    command = commands.add_parser(
        "export",
        help="write a layer as what SAELens or dictionary_learning loads, or as safetensors",
        description="Writes one layer as what a trainer of sparse autoencoders loads from disk, "
        "and prints how.",
    )
    export.add_arguments(command)
    command.set_defaults(run=export.run, done="exported")
    _add_looks(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except EXPLAINED as error:
        said = _explained(error, options.folder)
        print(f"{options.folder} cannot be {options.done}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _explained(error: Exception, folder: str) -> str:
    """What is wrong, and what to do if a file of the dataset is damaged or missing."""
    if isinstance(error, FileNotFoundError) and error.filename and Path(folder).is_dir():
        missing = Path(error.filename).is_relative_to(folder)
        said = f"{error}; {ADVICE}" if missing else str(error)
    else:
        said = "; ".join([str(error), *getattr(error, "__notes__", [])])
    return said.replace("DATASET", folder)


def _add_looks(commands: Any) -> None:
    """The commands that show what a dataset is."""
    command = commands.add_parser(
        "inspect",
        help="say in a terminal what a dataset is, with a table of its layers",
        description="Prints what the metadata says of a dataset, with a table of its layers.",
    )
    command.add_argument("folder", metavar="DIR", help="the dataset: a folder, or a gs:// URL")
    command.add_argument(
        "--full", action="store_true", help="read every vector too, and say what only they can"
    )
    command.set_defaults(run=_inspect, done="inspected")
    command = commands.add_parser(
        "report",
        help="draw a dataset on a page of HTML",
        description="Draws a dataset on one page of HTML that needs no network. Of a large dataset "
        "some whole samples are read, always the same ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("folder", metavar="DIR", help="the dataset: a folder, or a gs:// URL")
    command.add_argument("-o", "--output", default="report.html", metavar="FILE", help="the page")
    command.add_argument("--full", action="store_true", help="read every vector")
    command.add_argument(
        "--seed", type=export.at_least(0), default=0, help="of the choice of what is read"
    )
    command.set_defaults(run=_report, done="reported on")
    command = commands.add_parser(
        "card",
        help=f"write a dataset's card, {CARD_FILE}, again",
        description=f"Writes the card of a dataset, {CARD_FILE}, into it, with its certificate if "
        "there is one. A card that somebody else wrote is left alone.",
    )
    command.add_argument("folder", metavar="DIR", help="the dataset: a folder, or a gs:// URL")
    command.add_argument(
        "--license",
        metavar="ID",
        help="of the tasks, as the Hugging Face hub names it, such as apache-2.0 (default: what "
        "the card says, or else unknown)",
    )
    command.set_defaults(run=_card, done="described")


def _inspect(options: argparse.Namespace) -> int:
    dataset = ActivationDataset(options.folder)
    print(inspect(options.folder, dataset.metadata), end="")
    if options.full:
        print("\n" + inspect_vectors(dataset.metadata, survey(dataset, whole=True)), end="")
    return 0


def _report(options: argparse.Namespace) -> int:
    dataset = ActivationDataset(options.folder)
    output = Path(options.output)
    if not output.parent.is_dir():  # before much is read
        raise FileNotFoundError(f"--output {output}: there is no folder {output.parent}")
    found = survey(dataset, whole=options.full, seed=options.seed)
    output.write_text(report(dataset, found), "utf-8")
    read = "all" if found.whole else f"{found.vectors:,}"
    print(f"{options.output}: {read} vectors of each layer were read")
    return 0


def _card(options: argparse.Namespace) -> int:
    dataset = ActivationDataset(options.folder)
    present, certificate = (
        _content(dataset.folder, name) for name in (CARD_FILE, CERTIFICATE_FILE)
    )
    text = renewed_card(dataset.metadata, present, certificate, options.license)
    if text is None:
        raise CardError(f"its {CARD_FILE} was written by somebody else; remove or rename it first")
    dataset.folder.save(CARD_FILE, text.encode())
    print(f"{options.folder}/{CARD_FILE}")
    return 0


def _content(folder: Folder, name: str) -> bytes | None:
    try:
        with folder.open(name) as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def _certify(options: argparse.Namespace) -> int:
    certificate = certify(
        options.folder, options.model_path, options.samples, options.seed, options.tolerance
    )
    names = ["layer", *map(site_label, certificate.layers)]
    width = max(map(len, names))
    print(f"{names[0]:>{width}}  relative error  cosine")
    for name, parity in zip(names[1:], certificate.layers.values(), strict=True):
        print(f"{name:>{width}}  {parity.relative_error:14.2e}  {parity.cosine:.6f}")
    compared = f"{len(certificate.samples)} samples, {certificate.vectors} vectors in each layer"
    verdict = "within" if certificate.passed else "PAST"
    print(f"{verdict} the tolerance of {certificate.tolerance:g}: {compared}; {CERTIFICATE_FILE}")
    return 0 if certificate.passed else 1


def _index(options: argparse.Namespace) -> int:
    dataset = ActivationDataset(options.folder)
    made = keep_indexes(dataset.folder, dataset.metadata)
    print(f"{len(dataset.metadata.shards)} indexes, {made} of them made now")
    return 0


def _verify(folder: str, repair_list: bool) -> int:
    started = time.monotonic()
    report = verify(folder, _workers(folder))
    seconds = time.monotonic() - started
    lines = report.repair_list if repair_list else report.problems
    for line in lines:
        print(line)
    read = f"{report.files} files, {report.bytes / 1e6:.1f} MB in {seconds:.1f} s"
    if report.problems:
        print(f"{count_of(len(report.problems), 'problem')} in {read}", file=sys.stderr)
        return 1
    if not repair_list:
        print(f"sound: {read}")
    return 0


def _workers(folder: str) -> int:
    """One process for a small dataset or a remote one of unknown size, else one for each core."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            size += os.stat(os.path.join(parent, name), follow_symlinks=False).st_size
    if size < _SMALL_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
