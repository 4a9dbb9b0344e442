"""Where a dataset lies: a local folder, or whatever fsspec can reach if it is installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol

# Large enough that a disk or a bucket is read at its speed.
_BUFFER_BYTES = 1 << 20


class Folder(Protocol):
    """What reading needs of a folder. Paths are relative to it, with "/"."""

    def open(self, path: str) -> BinaryIO:
        """The file, to be read, seekable. Raises FileNotFoundError or another OSError."""

    def files(self) -> Iterator[str]:
        """All files in it and below, in no order."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine."""

    root: Path

    def open(self, path: str) -> BinaryIO:
        return open(self.root / path, "rb", buffering=_BUFFER_BYTES)

    def files(self) -> Iterator[str]:
        for folder, _, names in os.walk(self.root, onerror=_raise):
            for name in names:
                yield (Path(folder) / name).relative_to(self.root).as_posix()


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of a file system of fsspec."""

    file_system: Any
    root: str

    def open(self, path: str) -> BinaryIO:
        file: BinaryIO = self.file_system.open(f"{self.root}/{path}", "rb")
        return file

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


def _raise(error: OSError) -> None:
    raise error
