"""Files on a local disk or in a bucket of Cloud Storage: list, find, read, measure and delete.

Paths are local or `gs://`; those of inputs may also be of `transforms.remote_input`. Local files
are Python's own. A bucket is used through Google's client, which repeats requests that fail for a
moment; the process shares one client. Functions raise `OutputError`, except `exists`,
`list_objects` and `open_file`, which let the errors of the store pass.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, ClassVar

from google.api_core.exceptions import NotFound

from activation_dataset.checksum import crc32c_of_stream, to_text
from qwen.bucket import bucket_client
from transforms.remote_input import exists_remote, is_remote, list_remote, open_remote

BUCKET_SCHEME = "gs://"

READ_BYTES = 8 << 20
"""Bytes of an object that one request asks for."""

REQUESTS_AT_ONCE = 16
"""Small requests that are made at the same time, since a bucket answers slowly."""

_CLIENTS = ("google", "aiohttp", "botocore", "huggingface_hub")
"""Libraries whose errors are those of a store."""

_ABSENT = (FileNotFoundError, NotADirectoryError, NotFound)


class StorageError(OSError):
    """A file that could not be read or written."""

    advice: ClassVar[str]
    # A decompressor's errors about damaged content have no number; this one always has.
    errno = errno.EIO


class OutputError(StorageError):
    """Output that could not be read or written; the message says where and what to check."""

    advice = (
        "check that --output_dir is a folder or bucket that this user may write to, and that it "
        "has room"
    )


class TasksUnreadableError(StorageError):
    """A file of tasks that exists and cannot be read."""

    advice = "this user must be able to read every file of --tasks_file"


@contextmanager
def storage_errors(path: str, kind: type[StorageError] = OutputError) -> Iterator[None]:
    """Raise errors of disks and of clients of stores about a path as ours; let others pass."""
    try:
        yield
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        of_storage = isinstance(error, OSError) or library in _CLIENTS
        if isinstance(error, StorageError) or not of_storage:
            raise
        cause = " ".join(str(error).split())
        raise kind(f"{path}: cannot be read or written ({cause}); {kind.advice}") from error


def in_bucket(path: str) -> bool:
    """Return True if the path is a `gs://` one."""
    return path.startswith(BUCKET_SCHEME)


def join(folder: str, *names: str) -> str:
    """Return the path of a name below a folder; names may contain "/"."""
    return "/".join([folder.rstrip("/"), *names])


def blob_of(path: str) -> Any:
    """Return the `google.cloud.storage.Blob` of a `gs://` path, without asking the store."""
    bucket, _, name = path.removeprefix(BUCKET_SCHEME).partition("/")
    return bucket_client().bucket(bucket).blob(name)


def list_files(folder: str) -> dict[str, int]:
    """Return the name and the bytes of every file below a folder; none if it does not exist."""
    with storage_errors(folder):
        if in_bucket(folder):
            root = folder.rstrip("/") + "/"
            return {path.removeprefix(root): size for path, size in list_objects(root)}
        sizes = {}
        for path in _local_files(folder):
            with suppress(FileNotFoundError):  # Renamed or deleted since it was listed.
                sizes[os.path.relpath(path, folder)] = os.path.getsize(path)
        return sizes


def exists(path: str) -> bool:
    """Return True if there is a file; errors of the store pass."""
    if is_remote(path):
        return exists_remote(path)
    return bool(blob_of(path).exists()) if in_bucket(path) else os.path.isfile(path)


def open_file(path: str) -> BinaryIO:
    """Open a file to read its bytes as stored, seekable."""
    if is_remote(path):
        return open_remote(path)
    if not in_bucket(path):
        return open(path, "rb")
    blob = blob_of(path)
    blob.reload()  # Seeking needs the size, and all reads must be of one generation.
    # Raw, since the store would otherwise decompress what is stored as gzip.
    stream: BinaryIO = blob.open("rb", chunk_size=READ_BYTES, raw_download=True)
    return stream


def read_if_exists(path: str, kind: type[StorageError] = OutputError) -> bytes | None:
    """Return the content of a small file, or None if there is none."""
    with storage_errors(path, kind), suppress(*_ABSENT):
        if is_remote(path):
            with open_remote(path) as stream:
                return stream.read()
        if in_bucket(path):
            content: bytes = blob_of(path).download_as_bytes()
            return content
        with open(path, "rb") as stream:
            return stream.read()
    return None


def size_and_crc32c(path: str) -> tuple[int, str] | None:
    """Return the bytes and the base64 CRC32C of a file, or None if there is none.

    A bucket knows the checksum; a local file is read.
    """
    with storage_errors(path), suppress(*_ABSENT):
        if in_bucket(path):
            blob = blob_of(path)
            blob.reload()
            return blob.size, blob.crc32c
        with open(path, "rb") as stream:
            crc, size = crc32c_of_stream(stream)
            return size, to_text(crc)
    return None


def sizes_and_crc32c(paths: Iterable[str]) -> list[tuple[int, str] | None]:
    """Return `size_and_crc32c` of each file, of several at a time."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(size_and_crc32c, paths))


def delete(path: str) -> None:
    """Delete a file, if it exists."""
    with storage_errors(path), suppress(*_ABSENT):
        if in_bucket(path):
            blob_of(path).delete()
        else:
            os.remove(path)


def delete_all(paths: Iterable[str]) -> None:
    """Delete files, if they exist, several at a time and in no particular order."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for _ in pool.map(delete, paths):
            pass


def list_objects(prefix: str) -> Iterator[tuple[str, int]]:
    """Yield the path and the bytes of every object whose path starts with a prefix."""
    if is_remote(prefix):
        yield from list_remote(prefix)
        return
    bucket, _, start = prefix.removeprefix(BUCKET_SCHEME).partition("/")
    for blob in bucket_client().list_blobs(bucket, prefix=start):
        yield f"{BUCKET_SCHEME}{bucket}/{blob.name}", blob.size


def _local_files(folder: str) -> Iterator[str]:
    """Yield the paths of the files below a folder."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, _ABSENT):
            raise error

    for path, _, names in os.walk(folder, onerror=refuse):
        yield from (os.path.join(path, name) for name in names)
