"""Files on a local disk or in a bucket of Cloud Storage: list, find, read, measure and delete.

Paths are local or `gs://`; those of inputs may also be of `transforms.remote_input`. Local files
are Python's own. A bucket is used through Google's client, which repeats requests that fail for a
moment; the process shares one client. Functions raise `OutputError`, except `exists`,
`object_if_exists`, `list_objects` and `open_file`, which let the errors of the store pass.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, ClassVar

from google.api_core.exceptions import GoogleAPICallError, NotFound
from google.cloud.storage.retry import DEFAULT_RETRY

from activation_dataset.checksum import crc32c_of_stream, to_text
from qwen.bucket import bucket_client
from transforms.remote_input import exists_remote, is_remote, list_remote, open_remote

BUCKET_SCHEME = "gs://"

READ_BYTES = 8 << 20
"""Bytes of an object that one request asks for."""

REQUESTS_AT_ONCE = 16
"""Small requests that are made at the same time, since a bucket answers slowly."""

DELETES_OF_A_BATCH = 100
"""Deletions that one request asks for, the most that Cloud Storage takes."""

LISTED_TOGETHER = 500
"""Files of one listing of their common folder; of more, each folder is listed, several at a time.
A request lists 1,000 objects, and data files have manifests next to their folders."""

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


class RetentionError(OutputError):
    """An object that a retention policy protects from being replaced or deleted."""


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
        if (refusal := _refusal_of_retention(error)) is not None:
            bucket = path.removeprefix(BUCKET_SCHEME).partition("/")[0]
            raise RetentionError(
                f"{path}: the retention policy of bucket {bucket} does not allow replacing or "
                f"deleting it ({refusal}); choose another --output_dir, or wait until it does"
            ) from error
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


def object_if_exists(path: str) -> Any | None:
    """Return the `Blob` of a `gs://` path with the generation, size and CRC32C that it has now."""
    blob = blob_of(path)
    try:
        blob.reload()
    except NotFound:
        return None
    return blob


def list_files(folder: str) -> dict[str, int]:
    """Return the name and the bytes of every file below a folder; none if it does not exist."""
    with storage_errors(folder):
        if in_bucket(folder):
            root = folder.rstrip("/") + "/"
            return {path.removeprefix(root): blob.size for path, blob in _list_blobs(root)}
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


def read_each(paths: Iterable[str]) -> list[bytes | None]:
    """Return `read_if_exists` of each file, of several at a time."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(read_if_exists, paths))


Measured = tuple[int, str]
"""The bytes of a file and its CRC32C in base64."""


def sizes_and_crc32c(paths: Iterable[str]) -> dict[str, Measured]:
    """Return what is measured of those files that exist, all local or all in a bucket.

    A bucket knows the checksums and lists them; local files are read, several at a time.
    """
    wanted = list(paths)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        if any(map(in_bucket, wanted)):
            listings = pool.map(_list_measured, _prefixes(wanted))
            measured = {path: each for listing in listings for path, each in listing}
            return {path: measured[path] for path in wanted if path in measured}
        found = zip(wanted, pool.map(_measure_local, wanted), strict=True)
        return {path: each for path, each in found if each is not None}


def measure_beginning(prefix: str) -> dict[str, Measured]:
    """Return what is measured of all files whose names begin like the last part of a path."""
    if in_bucket(prefix):
        return dict(_list_measured(prefix))
    folder, _, start = prefix.rpartition("/")
    with storage_errors(folder), suppress(*_ABSENT):
        names = [name for name in os.listdir(folder or "/") if name.startswith(start)]
        return sizes_and_crc32c(join(folder, name) for name in names)
    return {}


def _prefixes(paths: Sequence[str]) -> set[str]:
    """Return the beginnings of paths with which few listings of a bucket find all of them."""
    folders = {path.removeprefix(BUCKET_SCHEME).rpartition("/")[0] for path in paths}
    if len(paths) <= LISTED_TOGETHER:
        folders = {os.path.commonpath(folders)}
    return {f"{BUCKET_SCHEME}{folder}/" for folder in folders}


def _list_measured(prefix: str) -> list[tuple[str, Measured]]:
    with storage_errors(prefix):
        return [(path, (blob.size, blob.crc32c)) for path, blob in _list_blobs(prefix)]


def _measure_local(path: str) -> Measured | None:
    with storage_errors(path), suppress(*_ABSENT), open(path, "rb") as stream:
        crc, size = crc32c_of_stream(stream)
        return size, to_text(crc)
    return None


def delete(path: str) -> None:
    """Delete a file, if it exists."""
    with storage_errors(path), suppress(*_ABSENT):
        if in_bucket(path):
            blob_of(path).delete()
        else:
            os.remove(path)


def delete_all(paths: Iterable[str]) -> None:
    """Delete files, if they exist, in no particular order: many in a request, several at a time."""
    wanted = list(paths)
    size = DELETES_OF_A_BATCH if any(map(in_bucket, wanted)) else 1
    batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for _ in pool.map(_delete_batch, batches):
            pass


def _delete_batch(paths: Sequence[str]) -> None:
    """Delete files with one request, and singly those of which the request failed."""
    failed = paths
    if len(paths) > 1:
        with storage_errors(paths[0]), suppress(GoogleAPICallError):
            failed = DEFAULT_RETRY(_ask_to_delete)(paths)
    for path in failed:
        delete(path)


def _ask_to_delete(paths: Sequence[str]) -> list[str]:
    """Send one request to delete objects; return those that may still exist."""
    with bucket_client().batch(raise_exception=False) as batch:
        for path in paths:
            blob_of(path).delete()
    # Google's own examples read the answers here; the client has no other place for them.
    answers = zip(paths, batch._responses, strict=True)
    return [path for path, answer in answers if answer.status_code not in (200, 204, 404)]


def list_objects(prefix: str) -> Iterator[tuple[str, int]]:
    """Yield the path and the bytes of every object whose path starts with a prefix."""
    if is_remote(prefix):
        yield from list_remote(prefix)
        return
    for path, blob in _list_blobs(prefix):
        yield path, blob.size


def _list_blobs(prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the `Blob` of every object whose `gs://` path starts with a prefix."""
    bucket, _, start = prefix.removeprefix(BUCKET_SCHEME).partition("/")
    for blob in bucket_client().list_blobs(bucket, prefix=start):
        yield f"{BUCKET_SCHEME}{bucket}/{blob.name}", blob


def _refusal_of_retention(error: Exception) -> str | None:
    """Return what a store said if it refused for a retention policy, otherwise None."""
    response: Any = getattr(error, "response", None)
    if response is None or response.status_code != 403:
        return None
    if "retentionPolicyNotMet" not in response.text:
        return None
    return str(response.json()["error"]["message"])


def _local_files(folder: str) -> Iterator[str]:
    """Yield the paths of the files below a folder."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, _ABSENT):
            raise error

    for path, _, names in os.walk(folder, onerror=refuse):
        yield from (os.path.join(path, name) for name in names)
