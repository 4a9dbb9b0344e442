"""The folder of a dataset: local, or behind a URL that fsspec can open."""

from __future__ import annotations

import io
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from activation_dataset.format import partial_file

# A read larger than the buffer bypasses it.
_BUFFER_BYTES = 1 << 16

# A request to a bucket takes 30 ms before its first byte: 16 MiB take ten times that at 50 MB/s.
REQUEST_BYTES = 1 << 24
"""Most bytes that a remote folder asks for at a time."""

# Listing a folder takes one request for up to 1,000 files.
_FEW = 4

# Properties of fsspec's `info`, by file system, that change with the content of a file.
_CHANGING = (
    *("size", "generation", "crc32c", "md5Hash", "etag", "ETag", "LastModified", "last_modified"),
    *("updated", "mtime", "ino", "created"),
)

Stamp = tuple[object, ...]
"""Properties of a file that change if it is written again; empty if there is no such file."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine.

    Paths of files are relative to `root` and use "/". Readers may add index files if `local`.
    `parallel_reads` is the number of concurrent reads that reach the folder's full speed, and
    `read_bytes` the size that each needs for it.
    """

    root: Path
    parallel_reads: int = 1
    local = True
    read_bytes = 1

    def open(self, path: str) -> BinaryIO:
        """Open a file for sequential reading; seekable. Raises OSError."""
        return open(self.root / path, "rb", buffering=_BUFFER_BYTES)

    def read(self, path: str) -> bytes:
        """Return the content of a file. Raises OSError."""
        return (self.root / path).read_bytes()

    def open_range(self, path: str, start: int, end: int) -> BinaryIO:
        """Open a file at the byte `start`, to be read up to `end`. Raises OSError."""
        stream: Any = open(self.root / path, "rb", buffering=0)  # noqa: SIM115
        stream.seek(start)
        return stream  # type: ignore[no-any-return]

    def save(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all. Raises OSError."""
        target = self.root / path
        target.parent.mkdir(exist_ok=True)
        partial = self.root / partial_file(path, secrets.token_hex(8))
        try:
            partial.write_bytes(data)
            partial.replace(target)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def stamps(self, paths: Sequence[str]) -> list[Stamp]:
        """Return the stamp of each file. Raises OSError."""
        return [_stamp(self.root / path) for path in paths]

    def files(self) -> Iterator[str]:
        """Yield the paths of all files in the folder and its subfolders, in no order."""
        # Joining strings takes a tenth of the time of Path.relative_to.
        skipped = len(os.path.join(self.root, ""))
        for folder, _, names in os.walk(self.root, onerror=_raise):
            prefix = os.path.join(folder, "")[skipped:].replace(os.sep, "/")
            yield from (prefix + name for name in names)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of an fsspec file system; methods as those of LocalFolder.

    The file system repeats requests that fail for a while. What it gives up on is an OSError.
    """

    file_system: Any
    root: str
    parallel_reads: int = 16
    local = False
    read_bytes = REQUEST_BYTES

    def open(self, path: str) -> BinaryIO:
        """Open a file for sequential reading; seekable. Raises OSError."""
        with _errors_of(path):
            file: BinaryIO = self.file_system.open(f"{self.root}/{path}", "rb")
            return file

    def open_range(self, path: str, start: int, end: int) -> BinaryIO:
        """Open a file at the byte `start`, to be read up to `end`. Raises OSError."""
        return _Range(self, path, start, end)  # type: ignore[return-value]

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the content of a file, or of a range, which is shorter if the file ends in it."""
        with _errors_of(path):
            data: bytes = self.file_system.cat_file(f"{self.root}/{path}", start, end)
        if start is not None and end is not None and len(data) > end - start:
            raise OSError(
                f"{path}: the server sent {len(data)} bytes for a range of {end - start}, so it "
                "does not support ranges. Copy the dataset to a local folder first"
            )
        return data

    def save(self, path: str, data: bytes) -> None:
        """Write a file. Raises OSError."""
        with _errors_of(path):
            self.file_system.pipe_file(f"{self.root}/{path}", data)

    def stamps(self, paths: Sequence[str]) -> list[Stamp]:
        """Return the stamp of each file. Raises OSError."""
        names = [f"{self.root}/{path}" for path in paths]
        listed: dict[str, dict[str, Any]] = {}
        for parent, count in Counter(name.rpartition("/")[0] for name in names).items():
            if count > _FEW:
                with suppress(FileNotFoundError), _errors_of(parent):
                    listed |= self.file_system.find(parent, detail=True)
        return [self._stamp(name, listed.get(name)) for name in names]

    def _stamp(self, name: str, listed: dict[str, Any] | None) -> Stamp:
        try:
            with _errors_of(name):
                info = listed or self.file_system.info(name)
        except FileNotFoundError:
            return ()
        return tuple(info.get(key) for key in _CHANGING)

    def files(self) -> Iterator[str]:
        """Yield the paths of all files in the folder and its subfolders, in no order."""
        with _errors_of(self.root):
            found = self.file_system.find(self.root)
        for path in found:
            yield path.removeprefix(self.root).lstrip("/")


class _Range(io.RawIOBase):
    """Bytes of a remote file, requested piece by piece."""

    def __init__(self, folder: RemoteFolder, path: str, start: int, end: int) -> None:
        self._folder, self._path = folder, path
        self._next, self._end, self._rest = start, end, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, unless a piece or the file ends before that."""
        if not self._rest and self._next < self._end:
            # A part is a little larger than a request where its last record is long.
            rest = self._end - self._next
            start = self._next
            end = start + (rest if rest < REQUEST_BYTES * 5 // 4 else REQUEST_BYTES)
            self._rest = memoryview(b"")  # Not two pieces in memory at a time.
            self._rest = memoryview(self._folder.read(self._path, start, end))
            self._next = end if len(self._rest) == end - start else self._end
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """Turn errors of file systems, which are of many types, into an OSError with the path."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{path}: the file system failed: {error!r}") from error


Folder = LocalFolder | RemoteFolder


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """Return the folder at a path or URL. Raises ImportError if the URL needs another package."""
    location = os.fspath(path)
    if "://" not in location:
        return LocalFolder(Path(location))
    try:
        # A cached listing would hide that a file has changed.
        file_system, root = import_module("fsspec.core").url_to_fs(
            location, use_listings_cache=False
        )
    except (ImportError, ValueError) as error:
        raise ImportError(
            f"{location}: reading a URL needs fsspec and its driver (for gs://: "
            f"pip install gcsfs), or copy the dataset to a local folder first: {error}"
        ) from error
    return RemoteFolder(file_system, root.rstrip("/"))


def _stamp(path: Path) -> Stamp:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _raise(error: OSError) -> None:
    raise error
