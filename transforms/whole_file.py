"""Files that appear whole or not at all, on a local disk or in a bucket."""

from __future__ import annotations

import ctypes
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from activation_dataset import checksum
from activation_dataset.format import partial_file

# Of Linux: begins to write, and does not wait for the end of it (man 2 sync_file_range).
_sync_file_range = None
if sys.platform == "linux":
    _sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_SYNC_FILE_RANGE_WRITE = 2


class OutputError(OSError):
    """Output that could not be written; the message says where and what to check."""


@contextmanager
def store_errors(path: str) -> Iterator[None]:
    """Makes an ``OutputError`` of what disks and Google's libraries raise; the rest is left alone.

    Args:
      path: what is being read or written.
    """
    try:
        yield
    except Exception as error:
        of_store = isinstance(error, OSError) or type(error).__module__.startswith("google.")
        if isinstance(error, OutputError) or not of_store:
            raise
        raise OutputError(
            f"{path}: cannot be read or written ({error}); check that --output_dir is a folder or "
            "bucket that this user may write to, and that it has room"
        ) from error


class WholeFile:
    """A file being written under a partial name; ``commit`` moves it to its own in one step.

    Nothing reads a partial name, and a name is drawn for each attempt, so that attempts at the same
    file do not meet. What is written must be a function of the file's name.

    Args:
      path: its own name.
      may_commit: called right before it gets that name; raises where it may not.

    Raises:
      OutputError: if it cannot be created.
    """

    def __init__(self, path: str, may_commit: Callable[[], None] = lambda: None) -> None:
        self.path, self._may_commit = path, may_commit
        self._partial = partial_file(path, secrets.token_hex(8))
        with store_errors(path):
            folder = FileSystems.split(path)[0]
            if "://" not in folder:
                os.makedirs(folder, exist_ok=True)
            self.stream: BinaryIO = FileSystems.create(
                self._partial, compression_type=CompressionTypes.UNCOMPRESSED
            )

    def start_writeback(self) -> None:
        """Lets a local disk begin with what was written; ``commit`` then has less to wait for."""
        if "://" not in self.path and _sync_file_range is not None:
            _sync_file_range(self.stream.fileno(), 0, 0, _SYNC_FILE_RANGE_WRITE)

    def commit(self, crc32c: str | None = None) -> None:
        """Closes the file and gives it its name, replacing what had it.

        Args:
          crc32c: base64 checksum of all that was written, compared with the one that the store
            computed where it computes one.

        Raises:
          OutputError: if it could not be closed, compared or moved; the name is as it was before.
          Exception: what ``may_commit`` raises; then too.
        """
        try:
            with store_errors(self.path):
                if "://" not in self.path:
                    self.stream.flush()
                    os.fsync(self.stream.fileno())
                self.stream.close()
                if crc32c is not None and self.path.startswith("gs://"):
                    stored = FileSystems.checksum(self._partial)
                    if stored != crc32c:
                        raise OutputError(f"{self.path}: stored CRC32C {stored}, sent {crc32c}")
                self._may_commit()
                if "://" not in self.path:
                    FileSystems.rename([self._partial], [self.path])
                    return
                # A bucket has no rename. The copy is the commit: it appears whole, or not at all.
                FileSystems.copy([self._partial], [self.path])
        except Exception:
            self.discard()
            self._may_commit()  # says why, where it is that it may not
            raise
        self._remove_partial()

    def discard(self) -> None:
        """Gives up; removes what was written as far as possible."""
        # Closing a bucket's stream would send what is left, and make an object of it.
        with suppress(Exception):
            getattr(self.stream, "terminate", self.stream.close)()
        self._remove_partial()

    def _remove_partial(self) -> None:
        # One that stays is recognised by its name, and removed by the next run. Whatever Beam
        # raises of a bucket that does not answer, it is no reason to give up a committed file.
        with suppress(Exception):
            FileSystems.delete([self._partial])


def write_whole(path: str, content: bytes, may_commit: Callable[[], None] = lambda: None) -> None:
    """Writes a small file, whole; the arguments are those of ``WholeFile``.

    Raises:
      OutputError: if it cannot be written.
    """
    file = WholeFile(path, may_commit)
    try:
        with store_errors(path):
            file.stream.write(content)
    except OutputError:
        file.discard()
        raise
    file.commit(checksum.to_text(checksum.crc32c(content)))


def join(folder: str, *parts: str) -> str:
    """A path below a local folder or a ``gs://`` one; parts may hold "/"."""
    return FileSystems.join(folder, *(piece for part in parts for piece in part.split("/")))


def read_if_exists(path: str) -> bytes | None:
    """The content of a small file, or None if there is none.

    Raises:
      OutputError: if it cannot be read.
    """
    with store_errors(path):
        if not FileSystems.exists(path):
            return None
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
            content: bytes = stream.read()
            return content
