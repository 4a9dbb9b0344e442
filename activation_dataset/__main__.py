"""python -m activation_dataset: commands on a dataset."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from activation_dataset.certify import CERTIFICATE_FILE, CertifyError, certify
from activation_dataset.reader import DatasetError
from activation_dataset.tfrecord import CorruptRecordError
from activation_dataset.verify import verify

# Below this size, starting workers takes longer than reading.
_SMALL_BYTES = 256 << 20


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
    command.add_argument("--seed", type=int, default=0, help="of the choice of samples")
    command.add_argument(
        "--tolerance",
        type=float,
        metavar="ERROR",
        help="largest relative error of a vector (default: what rounding explains, by dtype)",
    )
    command.set_defaults(run=_certify, done="certified")
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except (OSError, ImportError, DatasetError, CorruptRecordError, CertifyError) as error:
        print(f"{options.folder} cannot be {options.done}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _certify(options: argparse.Namespace) -> int:
    certificate = certify(
        options.folder, options.model_path, options.samples, options.seed, options.tolerance
    )
    print("layer  relative error  cosine")
    for layer, parity in certificate.layers.items():
        print(f"{layer:5}  {parity.relative_error:14.2e}  {parity.cosine:.6f}")
    compared = f"{len(certificate.samples)} samples, {certificate.vectors} vectors in each layer"
    verdict = "within" if certificate.passed else "PAST"
    print(f"{verdict} the tolerance of {certificate.tolerance:g}: {compared}; {CERTIFICATE_FILE}")
    return 0 if certificate.passed else 1


def _verify(folder: str, repair_list: bool) -> int:
    started = time.monotonic()
    report = verify(folder, _workers(folder))
    seconds = time.monotonic() - started
    lines = report.repair_list if repair_list else report.problems
    for line in lines:
        print(line)
    read = f"{report.files} files, {report.bytes / 1e6:.1f} MB in {seconds:.1f} s"
    if report.problems:
        print(f"{len(report.problems)} problems in {read}", file=sys.stderr)
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
