"""Files that appear whole or not at all, on a local disk or in a bucket."""

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

# Linux starts to write to disk and does not wait for the end (man 2 sync_file_range).
_sync_file_range = None
if sys.platform == "linux":
    _sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_SYNC_FILE_RANGE_WRITE = 2


class WholeFile:
    """A file that is being written; `commit` gives it its name in one step.

    On a local disk the file has a partial name of its own until it is renamed. In a bucket it has
    no other name: an object appears when its upload is complete, and stays if it has the content
    already. The content must be a function of the name, since several attempts may write the same
    file. Leaving a `with` block gives up a file that has no name yet. Methods raise `OutputError`
    if the store does not do its part.

    Attributes:
        stream: takes the content.
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
        """Let a local disk start with what was written, so that `commit` has less to wait for."""
        if not in_bucket(self.path) and _sync_file_range is not None:
            _sync_file_range(self.stream.fileno(), 0, 0, _SYNC_FILE_RANGE_WRITE)

    def commit(self, crc: str | None = None) -> None:
        """Close the file and give it its name, replacing the file that had it.

        A bucket refuses content with another CRC32C than the one given, in base64. If `may_commit`
        raises, the file that had the name is unchanged.
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
            self._may_commit()  # If the claim was lost meanwhile, that is the reason.
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.stream.closed:
            self.discard()

    def discard(self) -> None:
        """Give up and remove what was written, as far as possible."""
        with suppress(Exception):  # A full disk cannot take what is still in the buffer.
            self.stream.close()
        with suppress(OSError):
            if not in_bucket(self.path):
                os.remove(self._partial)


def write_whole(path: str, content: bytes, may_commit: Callable[[], None] = lambda: None) -> None:
    """Write a small file, whole, as `WholeFile` does."""
    with WholeFile(path, may_commit) as file:
        with storage_errors(path):
            file.stream.write(content)
        file.commit(to_text(crc32c(content)))
