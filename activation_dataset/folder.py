"""The folder of a dataset: local, or behind a URL that fsspec can open."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from activation_dataset.format import partial_file

# A read larger than the buffer bypasses it.
_BUFFER_BYTES = 1 << 16


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine.

    Paths of files are relative to `root` and use "/". Readers may add index files if `local`.
    `parallel_reads` is the number of concurrent reads that reach the folder's full speed.
    """

    root: Path
    local = True
    parallel_reads = 1

    def open(self, path: str) -> BinaryIO:
        """Open a file for sequential reading; seekable. Raises OSError."""
        return open(self.root / path, "rb", buffering=_BUFFER_BYTES)

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

    def stamp(self, path: str) -> tuple[int, ...] | None:
        """Return what changes if a file is written again; None if unknown. Raises OSError."""
        found = os.stat(self.root / path)
        return found.st_ino, found.st_size, found.st_mtime_ns

    def files(self) -> Iterator[str]:
        """Yield the paths of all files in the folder and its subfolders, in no order."""
        # Joining strings takes a tenth of the time of Path.relative_to.
        skipped = len(os.path.join(self.root, ""))
        for folder, _, names in os.walk(self.root, onerror=_raise):
            prefix = os.path.join(folder, "")[skipped:].replace(os.sep, "/")
            yield from (prefix + name for name in names)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of an fsspec file system; methods as those of LocalFolder."""

    file_system: Any
    root: str
    local = False
    parallel_reads = 16

    def open(self, path: str) -> BinaryIO:
        file: BinaryIO = self.file_system.open(f"{self.root}/{path}", "rb")
        return file

    def open_range(self, path: str, start: int, end: int) -> BinaryIO:
        return io.BytesIO(self.file_system.cat_file(f"{self.root}/{path}", start, end))

    def save(self, path: str, data: bytes) -> None:
        self.file_system.pipe_file(f"{self.root}/{path}", data)

    def stamp(self, path: str) -> tuple[int, ...] | None:
        return None

    def files(self) -> Iterator[str]:
        for path in self.file_system.find(self.root):
            yield path.removeprefix(self.root).lstrip("/")


Folder = LocalFolder | RemoteFolder


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """Return the folder at a path or URL. Raises ImportError if the URL needs another package."""
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
