"""Verification of a dataset against its metadata by checksum and, on request, by record.

The checksums find every flipped bit, truncated file, and missing or extra file. Decoding the
records also finds bugs in the writer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from activation_dataset.checksum import crc32c_of_stream, to_text
from activation_dataset.damage import DatasetError, advice
from activation_dataset.fields import FieldError
from activation_dataset.folder import Folder, open_folder
from activation_dataset.format import (
    METADATA_FILE,
    PROMPTS_FOLDER,
    REJECTED_FILE,
    is_partial_file,
    parse_data_file,
)
from activation_dataset.input_counts import RejectedKind, count_rejections
from activation_dataset.manifest import FileEntry
from activation_dataset.metadata import Metadata
from activation_dataset.verify_records import check_records

RERUN = "run the same command again to rewrite the file"
_DELETE = "delete it"
_REWRITE = "delete it and run the same command again, which verifies the other files"


@dataclass(frozen=True, order=True)
class Problem:
    """One problem of a dataset.

    Attributes:
        file: path in the dataset's folder.
        what: description of the problem.
        remedy: advice to the user.
    """

    file: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}: {self.remedy}"


@dataclass(frozen=True)
class VerifyReport:
    """Result of a verification.

    Attributes:
        problems: problems, sorted by file.
        files: number of files that were read.
        bytes: size of these files.
    """

    problems: tuple[Problem, ...]
    files: int
    bytes: int


def verify(path: str | os.PathLike[str], records: bool = False) -> VerifyReport:
    """Check a dataset against its metadata and report all problems.

    The check covers the digest and fields of metadata.json, the presence, size and CRC32C of every
    listed file, unlisted files in the folders of sites and prompts, leftover partial files, and the
    numbers of rejected files, tasks and samples.

    Args:
        path: local folder, or a URL that fsspec can open.
        records: True to also decode every record of the files without a problem, to check the
            samples, their order, shapes and token ids against the prompts, and to check the
            statistics.
    """
    folder = open_folder(path)
    present = set(folder.files())
    problems = [
        Problem(file, "partial file of an interrupted writer", _DELETE)
        for file in present
        if is_partial_file(file)
    ]
    metadata, wrong = _read_metadata(folder, present)
    problems += wrong
    if metadata is None:
        return VerifyReport(tuple(sorted(problems)), 0, 0)
    problems += _unlisted_files(metadata, present)
    problems += _check_rejected(folder, metadata, present)
    entries = [entry for shard in metadata.shards for entry in shard.all_files]
    with ThreadPoolExecutor(_threads(folder)) as pool:
        results = list(pool.map(lambda entry: _check_file(folder, entry, present), entries))
        damaged = {problem.file for problem, _ in results if problem}
        problems += [problem for problem, _ in results if problem]
        if records:
            problems += [
                Problem(file, what, "report this as a bug in the program that wrote the dataset")
                for file, what in check_records(folder, metadata, damaged, pool)
            ]
    size = sum(count for _, count in results)
    read = sum(entry.path in present for entry in entries)
    return VerifyReport(tuple(sorted(problems)), read, size)


def check_listed(folder: Folder, entries: Sequence[FileEntry]) -> None:
    """Check that files are the ones that metadata.json lists, before a command reads them whole.

    A reader checks the records of a file, but a valid file of another site has valid records too.

    Raises:
        DatasetError: if a file is missing or has another size or CRC32C. The message names it.
    """
    present = set(folder.files())
    with ThreadPoolExecutor(_threads(folder)) as pool:
        checked = pool.map(lambda entry: _check_file(folder, entry, present)[0], entries)
        wrong = [problem for problem in checked if problem]
    if wrong:
        more = f" (and {len(wrong) - 1} more files with problems)" if len(wrong) > 1 else ""
        raise DatasetError(f"{wrong[0].file}: {wrong[0].what}{more}. {advice(folder)}")


def _threads(folder: Folder) -> int:
    if not folder.local:
        return folder.parallel_reads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_file(folder: Folder, entry: FileEntry, present: set[str]) -> tuple[Problem | None, int]:
    if entry.path not in present:
        return Problem(entry.path, "missing", RERUN), 0
    try:
        with folder.open(entry.path) as stream:
            crc, size = crc32c_of_stream(stream)
    except OSError as error:
        return Problem(entry.path, f"cannot be read: {error}", RERUN), 0
    what = entry.difference(size, to_text(crc))
    return Problem(entry.path, what, RERUN) if what else None, size


def _read_metadata(folder: Folder, present: set[str]) -> tuple[Metadata | None, list[Problem]]:
    if METADATA_FILE not in present:
        if any(parse_data_file(file) for file in present):
            what, remedy = "missing, the run is incomplete", "run the same command again"
        else:
            what, remedy = "missing, not a dataset", "give the --output_dir of a job"
        return None, [Problem(METADATA_FILE, what, remedy)]
    try:
        with folder.open(METADATA_FILE) as stream:
            return Metadata.from_json(stream.read()), []
    except (OSError, FieldError) as error:
        return None, [Problem(METADATA_FILE, str(error), _REWRITE)]


def _unlisted_files(metadata: Metadata, present: set[str]) -> Iterator[Problem]:
    listed = {entry.path for shard in metadata.shards for entry in shard.all_files}
    for file in present - listed:
        in_data_folder = file.startswith(("layer_", f"{PROMPTS_FOLDER}/")) and "/" in file
        if in_data_folder and not is_partial_file(file):
            yield Problem(file, f"not listed in {METADATA_FILE}", _DELETE)


def _check_rejected(folder: Folder, metadata: Metadata, present: set[str]) -> list[Problem]:
    listed: list[tuple[RejectedKind, str, int]] = []
    if REJECTED_FILE in present:
        try:
            with folder.open(REJECTED_FILE) as stream:
                listed = [
                    (each["kind"], str(each["reason"]), int(each["samples"]))
                    for each in map(json.loads, stream)
                ]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return [Problem(REJECTED_FILE, f"cannot be read: {error!r}", RERUN)]
    counts = zip(count_rejections(listed), metadata.counts.rejected, strict=True)
    return [
        Problem(REJECTED_FILE, f"has {found} rejected {name}, {METADATA_FILE} says {said}", RERUN)
        for name, (found, said) in zip(("files", "tasks", "samples"), counts, strict=True)
        if found != said
    ]
