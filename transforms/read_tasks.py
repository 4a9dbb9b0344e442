"""Files to tasks and documents; everything that cannot be used gets an output of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from activation_dataset.metadata import InputFile
from corpus.parse import parse_tasks
from corpus.tables import TABLE_SUFFIXES, parse_table
from corpus.task import Document, Item, Notice, RejectedTask, Rejection, Task
from transforms.decompress import decompressed
from transforms.find_inputs import Pattern, common_root, match_files, source_of
from transforms.remote_input import without_query
from transforms.storage import TasksUnreadableError, open_file, storage_errors

REJECTED = "rejected"
INPUTS = "inputs"
SKIPPED = "skipped"
NOTICES = "notices"


@dataclass(eq=False)
class ReadTasks(beam.PTransform):
    """Reads every file that the patterns stand for, each once.

    The output `items` has the tasks and documents, `rejected` a `RejectedTask` for each that cannot
    be used, `notices` a `Notice` where one is used under another name, `inputs` the size and digest
    of each file (`InputFile`), and `skipped` the names of files that were left out. A sample's
    source is its file's path below the folder that all patterns share, so that keys are the same
    wherever that folder is.

    Attributes:
      patterns: from `resolve_patterns`.
      text_field: the only content to read of each record; None for what is found.
    """

    patterns: tuple[Pattern, ...]
    text_field: str | None = None

    def expand(self, begin: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        return (
            begin
            | "Patterns" >> beam.Create(self.patterns)
            | "Match" >> beam.FlatMap(_found)
            | "EachOnce" >> beam.Distinct()
            | "Parse"
            >> beam.FlatMap(
                _tagged_items, common_root(self.patterns), self.text_field
            ).with_outputs(REJECTED, INPUTS, SKIPPED, NOTICES, main="items")
        )


def _found(pattern: Pattern) -> Iterator[tuple[bytes, bool]]:
    """Yield paths, which may hold bytes that are not UTF-8, and whether to read them."""
    found = match_files(pattern)
    yield from ((os.fsencode(path), True) for path in found.files)
    yield from ((os.fsencode(path), False) for path in found.skipped)


def _tagged_items(
    found: tuple[bytes, bool], root: str, text_field: str | None
) -> Iterator[Task | Document | TaggedOutput]:
    encoded, is_read = found
    path = os.fsdecode(encoded)
    source = source_of(path, root)
    if not is_read:
        yield TaggedOutput(SKIPPED, source)
        return
    for item in read_file(path, source, text_field):
        tag = _TAGS.get(type(item))
        yield TaggedOutput(tag, item) if tag else item


_TAGS: Mapping[type, str] = {RejectedTask: REJECTED, InputFile: INPUTS, Notice: NOTICES}


def read_file(path: str, source: str, text_field: str | None = None) -> Iterator[Item | InputFile]:
    """Yield the items of a file, called `source`, then its size and digest, as stored.

    Raises:
      TasksUnreadableError: if it cannot be opened or read.
    """
    with storage_errors(path, TasksUnreadableError):
        opened = open_file(path)
    with opened as stream:
        file = _TaskFile(stream, path)
        if without_query(path).lower().endswith(TABLE_SUFFIXES):
            # The end of a table says where its columns are, so it is read again, in order.
            yield from parse_table(file, source, text_field)  # type: ignore[arg-type]
            file.seek(0)
        else:
            yield from _json_items(file, path, source, text_field)
        yield file.digest_rest(source)


def _json_items(file: _TaskFile, path: str, source: str, text_field: str | None) -> Iterator[Item]:
    content = decompressed(file, without_query(path))  # type: ignore[arg-type]
    if content is None:
        yield from parse_tasks(file, source, text_field)  # type: ignore[arg-type]
        return
    for item in parse_tasks(content, source, text_field):  # type: ignore[arg-type]
        # That the content ends early is not worth a second rejection.
        if not (content.damage and isinstance(item, RejectedTask) and not item.task_id):
            yield item
    if content.damage:
        detail = f"cannot be decompressed to its end ({content.damage}); records before the damage "
        advice = "are read, the last of them may be wrong; copy or compress the file again"
        yield Rejection("damaged_archive", detail + advice).of(source)


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

    def close(self) -> None:
        """Leave the stream to its owner."""

    def tell(self) -> int:
        return self._stream.tell()

    def digest_rest(self, source: str) -> InputFile:
        """Read the rest of the file and return its size and digest."""
        while self.read(1 << 20):
            pass
        return InputFile(source, self._bytes, self._sha256.hexdigest())
