"""Files to tasks and documents; everything that cannot be used gets an output of its own."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from activation_dataset.metadata import InputFile
from corpus.parse import parse_tasks
from corpus.tables import TABLE_SUFFIXES, parse_table
from corpus.task import Document, RejectedTask, Task
from transforms.storage import (
    StorageError,
    find_files,
    fixed_part,
    in_bucket,
    open_file,
    storage_errors,
)

REJECTED = "rejected"
INPUTS = "inputs"

TASK_SUFFIXES = (".json", ".jsonl")
"""The files that are read of a folder, besides `TABLE_SUFFIXES`; also compressed ones."""

DATASET_FILES = ("dataset_dict.json", "dataset_info.json", "state.json")
"""Files that Hugging Face saves next to Arrow files, or to folders of them; they hold no tasks."""

DECOMPRESSORS: Mapping[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


class TasksNotFoundError(ValueError):
    """A `--tasks_file` that matches nothing."""


class TasksUnreadableError(StorageError):
    """A file of tasks that exists and cannot be read."""

    advice = "this user must be able to read every file of --tasks_file"


def resolve_patterns(tasks_files: Sequence[str]) -> tuple[str, ...]:
    """Make each input a pattern that matches at least one file; a folder stands for its files.

    Raises:
      TasksNotFoundError: naming the input that matches nothing or cannot be listed.
    """
    return tuple(_resolve(path) for path in tasks_files)


def _resolve(path: str) -> str:
    if "://" in path:
        if not in_bucket(path):
            raise TasksNotFoundError(f"--tasks_file {path!r}: must be local or gs://")
        place = path
    else:
        # Absolute, so that a file has one name however it is spelled.
        place = os.path.abspath(os.path.expanduser(path)) + "/" * path.endswith("/")
    folder = place.rstrip("/") + "/*"
    candidates = [folder] if place.endswith("/") or os.path.isdir(place) else [place, folder]
    try:
        for pattern in candidates if path else []:
            with storage_errors(pattern, TasksUnreadableError):
                if match_files(pattern):
                    return pattern
    except TasksUnreadableError as error:
        raise TasksNotFoundError(f"--tasks_file {path!r} cannot be listed: {error}") from error
    if path and os.path.isdir(place):
        raise TasksNotFoundError(
            f"--tasks_file {path!r}: the folder holds no file of tasks: "
            f"{', '.join(TASK_SUFFIXES + TABLE_SUFFIXES)}. Its subfolders are not searched"
        )
    raise TasksNotFoundError(
        f"--tasks_file {path!r}: no such file. Give a file, a folder, a glob in quotes, or a "
        "gs:// path of tasks in JSON, JSON Lines, Parquet or Arrow."
    )


def match_files(pattern: str) -> list[str]:
    """Return the paths that a pattern matches; of a whole folder those of JSON or tables."""
    found = find_files(pattern)
    if pattern.endswith("/*"):
        is_dataset = any(path.endswith((".arrow", "/dataset_dict.json")) for path in found)
        skipped = DATASET_FILES if is_dataset else ()
        found = [p for p in found if _holds_tasks(p) and os.path.basename(p) not in skipped]
    return found


def _holds_tasks(path: str) -> bool:
    if path.endswith(TABLE_SUFFIXES):
        return True
    for suffix in DECOMPRESSORS:
        path = path.removesuffix(suffix)
    return path.endswith(TASK_SUFFIXES)


def common_root(patterns: Sequence[str]) -> str:
    """Return the deepest folder that holds every possible match, with a slash at its end."""
    shared = os.path.commonprefix([fixed_part(each) for each in patterns])  # noqa: RUF071
    return shared[: shared.rfind("/") + 1]


@dataclass(eq=False)
class ReadTasks(beam.PTransform):
    """Reads every file that matches the patterns, each once.

    The output `items` has the tasks and documents, `rejected` a `RejectedTask` for each that cannot
    be used, and `inputs` the size and digest of each file (`InputFile`). A sample's source is its
    file's path below the folder that all patterns share, so that keys are the same wherever that
    folder is.

    Attributes:
      patterns: from `resolve_patterns`.
      text_field: the only content to read of each record; None for what is found.
    """

    patterns: tuple[str, ...]
    text_field: str | None = None

    def expand(self, begin: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        return (
            begin
            | "Patterns" >> beam.Create(self.patterns)
            | "Match" >> beam.FlatMap(match_files)
            | "EachOnce" >> beam.Distinct()
            | "Parse"
            >> beam.FlatMap(
                _tagged_items, common_root(self.patterns), self.text_field
            ).with_outputs(REJECTED, INPUTS, main="items")
        )


def _tagged_items(
    path: str, root: str, text_field: str | None
) -> Iterator[Task | Document | TaggedOutput]:
    for item in read_file(path, path.removeprefix(root), text_field):
        if isinstance(item, RejectedTask):
            yield TaggedOutput(REJECTED, item)
        elif isinstance(item, InputFile):
            yield TaggedOutput(INPUTS, item)
        else:
            yield item


def read_file(
    path: str, source: str, text_field: str | None = None
) -> Iterator[Task | Document | RejectedTask | InputFile]:
    """Yield the items of a file, called `source`, then its size and digest, as stored.

    Raises:
      TasksUnreadableError: if it cannot be opened or read.
    """
    with storage_errors(path, TasksUnreadableError):
        opened = open_file(path)
    with opened as stream:
        file = _TaskFile(stream, path)
        if path.endswith(TABLE_SUFFIXES):
            # The end of a table says where its columns are, so it is read again, in order.
            yield from parse_table(file, source, text_field)  # type: ignore[arg-type]
            file.seek(0)
        else:
            yield from _decompressed_items(file, path, source, text_field)
        yield file.digest_rest(source)


def _decompressed_items(
    file: _TaskFile, path: str, source: str, text_field: str | None
) -> Iterator[Task | Document | RejectedTask]:
    decompress = DECOMPRESSORS.get(os.path.splitext(path)[1])
    try:
        content: Any = decompress(file) if decompress else file
        yield from parse_tasks(content, source, text_field)
    except TasksUnreadableError:
        raise
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        detail = f"{source}: cannot be decompressed ({error}); copy or compress the file again"
        yield RejectedTask(source, "", "damaged_archive", detail)


class _TaskFile:
    """A file of tasks that tells a read that fails from damaged content, and digests its bytes."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self._stream, self._path = stream, path
        self._bytes, self._sha256 = 0, hashlib.sha256()
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        with storage_errors(self._path, TasksUnreadableError):
            chunk = self._stream.read(size)
        self._bytes += len(chunk)
        self._sha256.update(chunk)
        return chunk

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move within the file; the digest starts again, with the bytes that are read next."""
        self._bytes, self._sha256 = 0, hashlib.sha256()
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def digest_rest(self, source: str) -> InputFile:
        """Read the rest of the file and return its size and digest."""
        while self.read(1 << 20):
            pass
        return InputFile(source, self._bytes, self._sha256.hexdigest())
