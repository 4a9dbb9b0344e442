"""Where a dataset lies: a local folder, a bucket, or whatever fsspec can reach."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import partial_file

# For small reads in order; a larger read goes past the buffer.
_BUFFER_BYTES = 1 << 16


class Source(Protocol):
    """A file whose bytes are read by their position, by any number of threads."""

    @property
    def piece_bytes(self) -> int:
        """How much to ask for at once: what fits into a core's cache, or what fills a network."""

    @property
    def descriptor(self) -> int | None:
        """What the operating system knows the file by; None if it does not."""

    def read(self, offset: int, views: list[NDArray[np.uint8]]) -> bool:
        """Fills the views, one after the other, with the bytes from `offset` on.

        Returns whether there were enough. Raises OSError.
        """

    def close(self) -> None:
        """Gives up the file."""


class Folder(Protocol):
    """What reading needs of a folder. Paths are relative to it, with "/"."""

    @property
    def local(self) -> bool:
        """Whether it is of this machine, so that a file may be added to it unasked."""

    @property
    def parallel_reads(self) -> int:
        """How many reads at a time it takes to read at its speed."""

    def open(self, path: str) -> BinaryIO:
        """The file, to be read in order, seekable. Raises FileNotFoundError or another OSError."""

    def source(self, path: str) -> Source:
        """The file, to be read anywhere; close it. Raises as `open`, but perhaps later."""

    def load(self, path: str) -> NDArray[np.uint8]:
        """All bytes of the file, perhaps read only as they are used. Raises as `open`."""

    def save(self, path: str, data: bytes) -> None:
        """Writes the file, whole or not at all. Raises OSError."""

    def files(self) -> Iterator[str]:
        """All files in it and below, in no order."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine."""

    root: Path
    local = True
    parallel_reads = 2

    def open(self, path: str) -> BinaryIO:
        return open(self.root / path, "rb", buffering=_BUFFER_BYTES)

    def source(self, path: str) -> Source:
        return _LocalFile(os.open(self.root / path, os.O_RDONLY))

    def load(self, path: str) -> NDArray[np.uint8]:
        if not (self.root / path).stat().st_size:
            return np.empty(0, np.uint8)
        return np.memmap(self.root / path, np.uint8, "r")

    def save(self, path: str, data: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(exist_ok=True)
        partial = self.root / partial_file(path, secrets.token_hex(8))
        try:
            partial.write_bytes(data)
            partial.replace(target)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def files(self) -> Iterator[str]:
        for folder, _, names in os.walk(self.root, onerror=_raise):
            for name in names:
                yield (Path(folder) / name).relative_to(self.root).as_posix()


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of a file system of fsspec."""

    file_system: Any
    root: str
    local = False
    parallel_reads = 16

    def open(self, path: str) -> BinaryIO:
        file: BinaryIO = self.file_system.open(f"{self.root}/{path}", "rb")
        return file

    def source(self, path: str) -> Source:
        return _RemoteFile(self.file_system, f"{self.root}/{path}")

    def load(self, path: str) -> NDArray[np.uint8]:
        return np.frombuffer(self.file_system.cat_file(f"{self.root}/{path}"), np.uint8)

    def save(self, path: str, data: bytes) -> None:
        self.file_system.pipe_file(f"{self.root}/{path}", data)

    def files(self) -> Iterator[str]:
        for path in self.file_system.find(self.root):
            yield path.removeprefix(self.root).lstrip("/")


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """The folder at a local path, or at a URL such as gs://bucket/folder.

    Raises:
        ImportError: a URL, and fsspec or its driver for such URLs is not installed or not known.
    """
    location = os.fspath(path)
    if "://" not in location:
        return LocalFolder(Path(location))
    try:
        file_system, root = import_module("fsspec.core").url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise ImportError(
            f"{location}: reading a URL needs fsspec and its driver (for gs://: "
            f"pip install gcsfs), or copy the dataset to a local folder first: {error}"
        ) from error
    return RemoteFolder(file_system, root.rstrip("/"))


class _LocalFile:
    piece_bytes = 1 << 19

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read(self, offset: int, views: list[Any]) -> bool:
        missing = sum(map(len, views))
        while missing:
            count = os.preadv(self.descriptor, views, offset)
            if not count:
                return False
            missing -= count
            offset += count
            while missing and count >= len(views[0]):
                count -= len(views[0])
                views = views[1:]
            if missing:
                views = [views[0][count:], *views[1:]]
        return True

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True)
class _RemoteFile:
    file_system: Any
    path: str
    piece_bytes = 1 << 25
    descriptor = None

    def read(self, offset: int, views: list[NDArray[np.uint8]]) -> bool:
        end = offset + sum(map(len, views))
        data = np.frombuffer(self.file_system.cat_file(self.path, offset, end), np.uint8)
        if len(data) != end - offset:
            return False
        position = 0
        for view in views:
            view[:] = data[position : position + len(view)]
            position += len(view)
        return True

    def close(self) -> None:
        """Nothing is held open."""


def _raise(error: OSError) -> None:
    raise error
