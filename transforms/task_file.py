"""Open input files, with a digest of the bytes as they are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from activation_dataset.checksum import extend
from activation_dataset.metadata import InputFile
from transforms.storage import TasksUnreadableError, open_file, storage_errors

_READ_BYTES = 1 << 20


class TaskFile:
    """An input file that distinguishes failed reads from damaged content, and digests its bytes."""

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
        """Move within the file, and restart the digest with the next bytes."""
        self._bytes, self._sha256 = 0, hashlib.sha256()
        return self._stream.seek(offset, whence)

    def close(self) -> None:
        """Do nothing, because the caller closes the stream."""

    def tell(self) -> int:
        return self._stream.tell()

    def digest_rest(self, source: str) -> InputFile:
        """Read the rest of the file and return its size and digest."""
        while self.read(_READ_BYTES):
            pass
        return InputFile(source, self._bytes, self._sha256.hexdigest())

    def take(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes, or fewer at the end of the file."""
        while size and (chunk := self.read(min(_READ_BYTES, size))):
            size -= len(chunk)
            yield chunk


class Measured:
    """Chunks of bytes with a running count and checksum.

    Attributes:
        bytes: number of bytes so far.
        lines: number of line ends so far.
        crc32c: CRC32C of the bytes.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.bytes = self.lines = self.crc32c = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self.bytes += len(chunk)
        self.lines += chunk.count(b"\n")
        self.crc32c = extend(self.crc32c, chunk)
        return chunk


@contextmanager
def open_tasks(path: str) -> Iterator[TaskFile]:
    """Open a task file.

    Raises:
        TasksUnreadableError: if the file cannot be opened.
    """
    with storage_errors(path, TasksUnreadableError):
        opened = open_file(path)
    with opened as stream:
        yield TaskFile(stream, path)
