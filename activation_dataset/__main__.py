"""Commands on a dataset: python -m activation_dataset COMMAND."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from activation_dataset import export
from activation_dataset.certify import CERTIFICATE_FILE, CertifyError, certify
from activation_dataset.closed_pipe import until_closed
from activation_dataset.damage import DatasetError
from activation_dataset.exporters import ExportError
from activation_dataset.folder import Folder
from activation_dataset.index import keep_indexes
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reporting.card import CARD_FILE, CardError, renewed_card
from activation_dataset.reporting.report import report
from activation_dataset.reporting.summary import count_of, inspect
from activation_dataset.reporting.survey import survey
from activation_dataset.tfrecord import CorruptRecordError
from activation_dataset.verify import verify

# Errors whose message is enough for a user, without a traceback.
_EXPLAINED = (
    *(OSError, ImportError, DatasetError, CorruptRecordError),
    *(CertifyError, CardError, ExportError),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 for success, 1 for problems, 2 for an error."""
    return until_closed(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    options = _build_parser().parse_args(arguments)
    # gcsfs logs the traceback of each error that it raises, which becomes one line below.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        status: int = options.run(options)
        return status
    except BrokenPipeError:
        raise
    except _EXPLAINED as error:
        print(f"{options.folder} cannot be {options.done}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _verify(options: argparse.Namespace) -> int:
    """Check a dataset against its metadata.

    The command compares the size and CRC32C of every file and the digest of metadata.json, and
    prints the file, the problem and the remedy for each problem. It exits with 1 if there are any.
    """
    started = time.monotonic()
    found = verify(options.folder, records=options.records)
    seconds = time.monotonic() - started
    read = f"{count_of(found.files, 'file')}, {found.bytes / 1e6:,.1f} MB in {seconds:.1f} s"
    for problem in found.problems:
        print(problem)
    if found.problems:
        print(f"{count_of(len(found.problems), 'problem')} in {read}", file=sys.stderr)
        return 1
    print(f"sound: {read}" + (", every record decoded" if options.records else ""))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    """Print a summary of a dataset and a table of its layers."""
    print(inspect(options.folder, ActivationDataset(options.folder).metadata), end="")
    return 0


def _report(options: argparse.Namespace) -> int:
    """Write an HTML report on a dataset.

    The page needs no network. Unless --full is set, the report reads a bounded number of samples.
    """
    dataset = ActivationDataset(options.folder)
    output = Path(options.output)
    if not output.parent.is_dir():  # Check early, because reading can take minutes.
        raise FileNotFoundError(f"--output {output}: folder {output.parent} does not exist")
    found = survey(dataset, whole=options.full, seed=options.seed)
    output.write_text(report(dataset, found), "utf-8")
    read = f"read {len(found.numbers):,} of {dataset.num_vectors:,} vectors of each layer"
    if len(found.numbers) < dataset.num_vectors:
        read += "; the other vectors were not checked, verify checks all"
    print(f"{output}: {read}")
    return 0


def _card(options: argparse.Namespace) -> int:
    """Regenerate the dataset card, README.md.

    The card includes the certificate, if any. The command does not overwrite a card that somebody
    else wrote.
    """
    dataset = ActivationDataset(options.folder)
    present, certificate = (
        _content(dataset.folder, name) for name in (CARD_FILE, CERTIFICATE_FILE)
    )
    text = renewed_card(dataset.metadata, present, certificate, options.license)
    if text is None:
        raise CardError(f"somebody else wrote its {CARD_FILE}: remove or rename the file first")
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
    """Compare samples with Hugging Face transformers.

    The command recomputes some samples in float32 and writes the largest errors of each layer to
    certificate.json. It exits with 1 if an error exceeds the tolerance, and needs torch and
    transformers.
    """
    found = certify(
        options.folder, options.model_path, options.samples, options.seed, options.tolerance
    )
    print("relative error  cosine    layer")
    for site, parity in found["layers"].items():
        print(f"{parity['relative_error']:14.2e}  {parity['cosine']:.6f}  {site}")
    verdict = "within" if found["passed"] else "EXCEEDS"
    compared = f"{len(found['samples'])} samples, {found['vectors']} vectors in each layer"
    print(f"{verdict} the tolerance of {found['tolerance']:g}: {compared}; {CERTIFICATE_FILE}")
    return 0 if found["passed"] else 1


def _index(options: argparse.Namespace) -> int:
    """Build the indexes of a dataset before it is read.

    A reader of a local folder builds missing indexes itself. Run this command before an upload, or
    for a gs:// URL.
    """
    dataset = ActivationDataset(options.folder)
    made = keep_indexes(dataset.folder, dataset.metadata)
    print(f"{count_of(len(dataset.metadata.shards), 'shard')}, {made} newly indexed")
    return 0


def _export(options: argparse.Namespace) -> int:
    """Export layers for a trainer of sparse autoencoders.

    The command writes files for SAELens or dictionary_learning, or safetensors files, and prints
    how to load them.
    """
    return export.run(options)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m activation_dataset")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(run: Callable[[argparse.Namespace], int], done: str) -> argparse.ArgumentParser:
        """Add a command. `done` completes the message "DIR cannot be ..."."""
        text = " ".join((run.__doc__ or "").split())
        command = commands.add_parser(
            run.__name__[1:], help=text.partition(". ")[0], description=text
        )
        command.set_defaults(run=run, done=done)
        if run is not _export:
            command.add_argument("folder", metavar="DIR", help="dataset: a folder or a gs:// URL")
        return command

    def add_seed(command: argparse.ArgumentParser) -> None:
        text = "seed of the random choice of samples (default: 0)"
        command.add_argument("--seed", type=export.at_least(0), default=0, help=text)

    command = add(_verify, "verified")
    command.add_argument(
        "--records", action="store_true", help="also decode and check every record"
    )
    command = add(_certify, "certified")
    command.add_argument("--model_path", required=True, help="folder of the model's checkpoint")
    command.add_argument(
        "--samples",
        type=export.at_least(1),
        default=16,
        help="number of samples to compare (default: 16)",
    )
    add_seed(command)
    command.add_argument(
        "--tolerance", type=float, help="largest relative error (default: depends on the dtypes)"
    )
    add(_index, "indexed")
    export.add_arguments(add(_export, "exported"))
    add(_inspect, "inspected")
    command = add(_report, "reported on")
    command.add_argument(
        "-o", "--output", default="report.html", help="file to write (default: report.html)"
    )
    command.add_argument(
        "--full", action="store_true", help="check every file and read every vector"
    )
    add_seed(command)
    command = add(_card, "described")
    command.add_argument(
        "--license", help="license identifier of the Hugging Face hub, such as apache-2.0"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
