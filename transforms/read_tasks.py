"""Files to tasks and documents; what cannot be used goes to its own output with a reason."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import IO, Any

import apache_beam as beam
from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import TaggedOutput

from activation_dataset.metadata import InputFile
from corpus.parse import parse_tasks
from corpus.tables import TABLE_SUFFIXES, parse_table
from corpus.task import Document, RejectedTask, Task

REJECTED = "rejected"
INPUTS = "inputs"

TASK_SUFFIXES = (".json", ".jsonl")
"""What is read of a folder, beside ``TABLE_SUFFIXES``; with one of ``DECOMPRESSORS`` too."""

DATASET_FILES = ("dataset_dict.json", "dataset_info.json", "state.json")
"""What Hugging Face saves beside Arrow files, or folders of them; they hold no tasks."""

# Beam's own decompression takes the end of a file that was cut short for the end of its content.
DECOMPRESSORS: Mapping[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}

WILDCARDS = "*?["


class TasksNotFoundError(ValueError):
    """A ``--tasks_file`` that matches nothing."""


class TasksUnreadableError(OSError):
    """A file of tasks that is there and cannot be opened."""


def resolve_patterns(tasks_files: Sequence[str]) -> tuple[str, ...]:
    """Makes each input a pattern that matches at least one file; a folder stands for its files.

    Raises:
      TasksNotFoundError: naming the input that matches nothing, or cannot be looked at.
    """
    return tuple(_resolve(path) for path in tasks_files)


def _resolve(path: str) -> str:
    if "://" in path:
        if not path.startswith("gs://"):
            raise TasksNotFoundError(f"--tasks_file {path!r}: must be local or gs://")
        place = path
    else:
        # Absolute, so that one file is one file however it is spelled.
        place = os.path.abspath(os.path.expanduser(path)) + "/" * path.endswith("/")
    folder = place.rstrip("/") + "/*"
    candidates = [folder] if place.endswith("/") or os.path.isdir(place) else [place, folder]
    try:
        for pattern in candidates if path else []:
            if match_files(pattern):
                return pattern
        if path and os.path.isdir(place):
            os.listdir(place)  # a glob finds nothing where it may not look
    except OSError as error:  # Beam's is one too
        raise TasksNotFoundError(f"--tasks_file {path!r} cannot be listed: {error}") from error
    if path and os.path.isdir(place):
        raise TasksNotFoundError(
            f"--tasks_file {path!r}: the folder holds no file of tasks: "
            f"{', '.join(TASK_SUFFIXES + TABLE_SUFFIXES)}. Folders in it are not looked into"
        )
    raise TasksNotFoundError(
        f"--tasks_file {path!r}: no such file. Give a file, a folder, a glob in quotes, or a "
        "gs:// path of tasks in JSON, JSON Lines, Parquet or Arrow."
    )


def match_files(pattern: str) -> list[FileMetadata]:
    """The files that a pattern matches; of a whole folder those that hold JSON or tables."""
    found: list[FileMetadata] = FileSystems.match([pattern])[0].metadata_list
    if pattern.endswith("/*"):
        is_dataset = any(f.path.endswith((".arrow", "/dataset_dict.json")) for f in found)
        beside = DATASET_FILES if is_dataset else ()
        found = [
            f for f in found if _holds_tasks(f.path) and os.path.basename(f.path) not in beside
        ]
    return [f for f in found if "://" in f.path or os.path.isfile(f.path)]


def _holds_tasks(path: str) -> bool:
    if path.endswith(TABLE_SUFFIXES):
        return True
    for suffix in DECOMPRESSORS:
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
        for item in read_file(path, path.removeprefix(self._root)):
            if isinstance(item, RejectedTask):
                yield TaggedOutput(REJECTED, item)
            elif isinstance(item, InputFile):
                yield TaggedOutput(INPUTS, item)
            else:
                yield item


def read_file(path: str, source: str) -> Iterator[Task | Document | RejectedTask | InputFile]:
    """All that a file holds, then the file itself: its size and digest, as it lies there.

    Args:
      source: what the file is called in sample ids.

    Raises:
      TasksUnreadableError: if it cannot be opened.
    """
    try:
        stream = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except OSError as error:
        raise TasksUnreadableError(
            f"{path}: cannot be read ({error}); this user must be able to read all of --tasks_file"
        ) from error
    with stream as raw:
        digesting = _DigestingStream(raw)
        if path.endswith(TABLE_SUFFIXES):
            # What is where in a table stands at its end, so it is read a second time, in order.
            yield from parse_table(raw, source)
            raw.seek(0)
        else:
            yield from _decompressed_items(digesting, path, source)
        digesting.read_rest()
    yield InputFile(source, digesting.bytes, digesting.sha256.hexdigest())


def _decompressed_items(
    stream: _DigestingStream, path: str, source: str
) -> Iterator[Task | Document | RejectedTask]:
    decompress = DECOMPRESSORS.get(os.path.splitext(path)[1])
    try:
        content: Any = decompress(stream) if decompress else stream
        yield from parse_tasks(content, source)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:
            raise  # Not the content is damaged: the file could not be read.
        detail = f"{source}: cannot be decompressed ({error}); copy or compress the file again"
        yield RejectedTask(source, "", "damaged_archive", detail)


class _DigestingStream:
    """Counts and digests the bytes that are read through it."""

    def __init__(self, stream: IO[bytes]) -> None:
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
