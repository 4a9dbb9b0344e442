"""Atomic writes of files to a local disk or a bucket."""

from __future__ import annotations

import ctypes
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, Self, cast

from activation_dataset.checksum import crc32c, to_text
from activation_dataset.format import partial_file
from transforms.storage import in_bucket, storage_errors
from transforms.upload import Upload

# On Linux, starts writing to disk without waiting for the end (man 2 sync_file_range).
_sync_file_range = None
if sys.platform == "linux":
    _sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_SYNC_FILE_RANGE_WRITE = 2


class WholeFile:
    """A file that is being written; `commit` gives it its name in one step.

    On a local disk, the file has a unique partial name until it is renamed. In a bucket, the object
    appears when its upload is complete, and an object with the same content is kept. The name must
    determine the content, since several attempts may write the same file. Leaving a `with` block
    discards an uncommitted file. Methods raise `OutputError` if the store fails.

    Attributes:
        stream: binary stream for the content.
    """

    def __init__(self, path: str, may_commit: Callable[[], None] = lambda: None) -> None:
        """Create the file. `may_commit` is called right before it gets its name, and may raise."""
        self.path, self._may_commit = path, may_commit
        self._partial = partial_file(path, secrets.token_hex(8))
        self.stream: BinaryIO
        with storage_errors(path):
            if in_bucket(path):
                self.stream = cast(BinaryIO, Upload(path))
            else:
                os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
                self.stream = open(self._partial, "wb")  # noqa: SIM115

    def start_writeback(self) -> None:
        """Start writing to the local disk, so that `commit` waits less."""
        if not in_bucket(self.path) and _sync_file_range is not None:
            _sync_file_range(self.stream.fileno(), 0, 0, _SYNC_FILE_RANGE_WRITE)

    def commit(self, crc: str | None = None) -> None:
        """Close the file and give it its name, replacing the file that had it.

        A bucket refuses content whose CRC32C differs from `crc`, in base64. If `may_commit` raises,
        an existing file with the name is unchanged.
        """
        try:
            with storage_errors(self.path):
                if isinstance(self.stream, Upload):
                    self.stream.complete(crc, self._may_commit)
                else:
                    self.stream.flush()
                    os.fsync(self.stream.fileno())
                    self.stream.close()
                    self._may_commit()
                    os.replace(self._partial, self.path)
        except Exception:
            self.discard()
            self._may_commit()  # A lost claim explains the error.
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.stream.closed:
            self.discard()

    def discard(self) -> None:
        """Remove the partial file, as far as possible."""
        with suppress(Exception):  # A full disk cannot take the rest of the buffer.
            self.stream.close()
        with suppress(OSError):
            if not in_bucket(self.path):
                os.remove(self._partial)


def write_whole(path: str, content: bytes, may_commit: Callable[[], None] = lambda: None) -> None:
    """Write a small file atomically."""
    with WholeFile(path, may_commit) as file:
        with storage_errors(path):
            file.stream.write(content)
        file.commit(to_text(crc32c(content)))
