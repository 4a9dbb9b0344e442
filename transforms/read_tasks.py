"""Files to tasks and documents; what cannot be used goes to its own output with a reason."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import BinaryIO

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import TaggedOutput

from activation_dataset.metadata import InputFile
from corpus.parse import parse_tasks
from corpus.task import Document, RejectedTask, Task

REJECTED = "rejected"
INPUTS = "inputs"

TASK_SUFFIXES = (".json", ".jsonl")
"""What is read of a folder; .gz and .bz2 behind them too."""

WILDCARDS = "*?["


class TasksNotFoundError(ValueError):
    """A ``--tasks_file`` that matches nothing."""


def resolve_patterns(tasks_files: Sequence[str]) -> tuple[str, ...]:
    """Makes each input a pattern that matches at least one file; a folder stands for its files.

    Raises:
      TasksNotFoundError: naming the input that matches nothing, or cannot be looked at.
    """
    return tuple(_resolve(path) for path in tasks_files)


def _resolve(path: str) -> str:
    if "://" not in path:
        path = os.path.expanduser(path)
    folder = path.rstrip("/") + "/*"
    candidates = [folder] if path.endswith("/") or os.path.isdir(path) else [path, folder]
    try:
        for pattern in candidates:
            if match_files(pattern):
                return pattern
    except BeamIOError as error:
        raise TasksNotFoundError(f"--tasks_file {path!r} cannot be listed: {error}") from error
    if os.path.isdir(path):
        raise TasksNotFoundError(
            f"--tasks_file {path!r}: the folder holds no {' or '.join(TASK_SUFFIXES)} file"
        )
    raise TasksNotFoundError(
        f"--tasks_file {path!r}: no such file. Give a file, a folder, a glob in quotes, or a "
        "gs:// path of tasks in JSON or JSON Lines."
    )


def match_files(pattern: str) -> list[FileMetadata]:
    """The files that a pattern matches; of a whole folder those that hold JSON."""
    found: list[FileMetadata] = FileSystems.match([pattern])[0].metadata_list
    if pattern.endswith("/*"):
        found = [f for f in found if _holds_json(f.path)]
    return [f for f in found if "://" in f.path or os.path.isfile(f.path)]


def _holds_json(path: str) -> bool:
    for suffix in (".gz", ".bz2"):
        path = path.removesuffix(suffix)
    return path.endswith(TASK_SUFFIXES)


def common_root(patterns: Sequence[str]) -> str:
    """The deepest folder that holds all that the patterns can match, with a slash at its end."""

    def fixed_folder(pattern: str) -> list[str]:
        parts = pattern.split("/")[:-1]
        wild = [i for i, part in enumerate(parts) if any(c in part for c in WILDCARDS)]
        return parts[: wild[0]] if wild else parts

    folders = [fixed_folder(pattern) for pattern in patterns]
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
    return "".join(level[0] + "/" for level in levels)


@dataclass(eq=False)
class ReadTasks(beam.PTransform):
    """Reads every file that matches the patterns, each once.

    Gives the tasks and documents, and under tags what was rejected (``RejectedTask``) and each
    file's size and digest (``InputFile``). A sample's source is its file's path below the folder
    that all patterns share, so that keys are the same wherever that folder lies.

    Attributes:
      patterns: from ``resolve_patterns``.
    """

    patterns: tuple[str, ...]

    def expand(self, begin: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        return (
            begin
            | "Patterns" >> beam.Create(self.patterns)
            | "Match" >> beam.FlatMap(lambda pattern: [f.path for f in match_files(pattern)])
            | "EachOnce" >> beam.Distinct()
            | "Parse"
            >> beam.ParDo(_ParseFile(common_root(self.patterns))).with_outputs(
                REJECTED, INPUTS, main="items"
            )
        )


class _ParseFile(beam.DoFn):
    def __init__(self, root: str) -> None:
        self._root = root

    def process(self, path: str) -> Iterator[Task | Document | TaggedOutput]:
        source = path.removeprefix(self._root)
        with FileSystems.open(path) as stream:
            digesting = _DigestingStream(stream)
            for item in parse_tasks(digesting, source):  # type: ignore[arg-type]
                yield TaggedOutput(REJECTED, item) if isinstance(item, RejectedTask) else item
            digesting.read_rest()
        yield TaggedOutput(INPUTS, InputFile(source, digesting.bytes, digesting.sha256.hexdigest()))


class _DigestingStream:
    """Counts and digests the bytes that are read through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(size)
        self.bytes += len(chunk)
        self.sha256.update(chunk)
        return chunk

    def read_rest(self) -> None:
        while self.read(1 << 20):
            pass
