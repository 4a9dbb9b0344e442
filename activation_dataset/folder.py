"""Folder of a dataset: a local folder, or a URL that fsspec can open."""

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

# The first byte of a request to a bucket takes 30 ms; 16 MiB take ten times as long at 50 MB/s.
REQUEST_BYTES = 1 << 24
"""Limit in bytes on one request of a remote folder."""

# Listing a folder takes one request for up to 1,000 files.
_FEW = 4

# Properties in fsspec's `info` that change with the content of a file. Each file system has some.
_CHANGING = (
    *("size", "generation", "crc32c", "md5Hash", "etag", "ETag", "LastModified", "last_modified"),
    *("updated", "mtime", "ino", "created"),
)

Stamp = tuple[object, ...]
"""Properties of a file that change when it is rewritten; empty if the file does not exist."""


@dataclass(frozen=True)
class LocalFolder:
    """Folder on this machine. Its methods raise OSError if the file system fails.

    Attributes:
        root: path of the folder. Paths of files are relative to it and use "/".
        parallel_reads: number of concurrent reads that reach the full speed of the folder.
        local: True if readers may add index files.
        read_bytes: size of a read that reaches the full speed of the folder.
    """

    root: Path
    parallel_reads: int = 1
    local = True
    read_bytes = 1

    @property
    def location(self) -> str:
        """Path or URL of the folder, as a command takes it."""
        return str(self.root)

    def open(self, path: str) -> BinaryIO:
        """Open a file for sequential reading. The stream is seekable."""
        return open(self.root / path, "rb", buffering=_BUFFER_BYTES)

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        return (self.root / path).read_bytes()

    def open_range(self, path: str, start: int, end: int) -> BinaryIO:
        """Open a file at the byte `start`, for reading up to `end`."""
        stream: Any = open(self.root / path, "rb", buffering=0)  # noqa: SIM115
        stream.seek(start)
        return stream  # type: ignore[no-any-return]

    def save(self, path: str, data: bytes) -> None:
        """Write a file, either whole or not at all."""
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
        """Return the stamp of each file."""
        return [_stamp(self.root / path) for path in paths]

    def files(self) -> Iterator[str]:
        """Yield the paths of all files in the folder and its subfolders, unordered."""
        # Joining strings takes a tenth of the time of Path.relative_to.
        skipped = len(os.path.join(self.root, ""))
        for folder, _, names in os.walk(self.root, onerror=_raise):
            prefix = os.path.join(folder, "")[skipped:].replace(os.sep, "/")
            yield from (prefix + name for name in names)


@dataclass(frozen=True)
class RemoteFolder:
    """Folder of an fsspec file system, with the attributes and methods of `LocalFolder`.

    The file system retries a failed request for a while before a method raises OSError.
    """

    file_system: Any
    root: str
    parallel_reads: int = 16
    local = False
    read_bytes = REQUEST_BYTES

    @property
    def location(self) -> str:
        """Path or URL of the folder, as a command takes it."""
        location: str = self.file_system.unstrip_protocol(self.root)
        return location

    def open(self, path: str) -> BinaryIO:
        """Open a file for sequential reading. The stream is seekable."""
        with _errors_of(path):
            file: BinaryIO = self.file_system.open(f"{self.root}/{path}", "rb")
            return file

    def open_range(self, path: str, start: int, end: int) -> BinaryIO:
        """Open a file at the byte `start`, for reading up to `end`."""
        return _Range(self, path, start, end)  # type: ignore[return-value]

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the content of a file or range. A range past the end of the file is cut."""
        with _errors_of(path):
            try:
                data: bytes = self.file_system.cat_file(f"{self.root}/{path}", start, end)
            except FileNotFoundError:
                raise
            except Exception:
                # Servers answer a range that starts past the end of the file with an error.
                if start is None or self.file_system.size(f"{self.root}/{path}") > start:
                    raise
                return b""
        if start is not None and end is not None and len(data) > end - start:
            raise OSError(
                f"{path}: the server sent {len(data)} bytes for a range of {end - start} and does "
                "not support ranges. Copy the dataset to a local folder first"
            )
        return data

    def save(self, path: str, data: bytes) -> None:
        """Write a file."""
        with _errors_of(path):
            self.file_system.pipe_file(f"{self.root}/{path}", data)

    def stamps(self, paths: Sequence[str]) -> list[Stamp]:
        """Return the stamp of each file."""
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
        """Yield the paths of all files in the folder and its subfolders, unordered."""
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
        """Fill the buffer, or a part of it at the end of a piece or of the file."""
        if not self._rest and self._next < self._end:
            # A long last record makes a part slightly larger than a request.
            rest = self._end - self._next
            start = self._next
            end = start + (rest if rest < REQUEST_BYTES * 5 // 4 else REQUEST_BYTES)
            self._rest = memoryview(b"")  # Free the old piece before the next one is read.
            self._rest = memoryview(self._folder.read(self._path, start, end))
            self._next = end if len(self._rest) == end - start else self._end
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """Turn the errors of file systems, which have many types, into an OSError with the path."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{path}: the file system failed: {error!r}") from error


Folder = LocalFolder | RemoteFolder


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """Return the folder at a path or URL.

    Raises:
        ImportError: if the URL needs another package.
    """
    location = os.fspath(path)
    if "://" not in location:
        return LocalFolder(Path(location))
    try:
        # A cached listing would hide changes of files.
        file_system, root = import_module("fsspec.core").url_to_fs(
            location, use_listings_cache=False
        )
    except (ImportError, ValueError) as error:
        raise ImportError(
            f"{location}: a URL needs fsspec and its driver ({error}). Install them (for gs://: "
            "pip install gcsfs), or copy the dataset to a local folder first"
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
