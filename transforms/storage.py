"""Files on a local disk or in a bucket of Cloud Storage: list, find, read, measure and delete.

Paths are local or `gs://`; paths of inputs may also be those of `transforms.remote_input`. Buckets
use Google's client, which retries transient failures; a process has one client. Functions raise
`OutputError`, except `exists`, `object_if_exists`, `list_objects` and `open_file`, which raise the
errors of the store.
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
"""Bytes of an object that one request reads."""

REQUESTS_AT_ONCE = 16
"""Concurrent small requests, which hide the latency of a bucket."""

DELETES_OF_A_BATCH = 100
"""Deletions in one request, the maximum of Cloud Storage."""

LISTED_TOGETHER = 500
"""Most files for which the common folder is listed once. With more, each folder is listed. A
request lists 1,000 objects, and half of all objects are manifests."""

_CLIENTS = ("google", "aiohttp", "botocore", "huggingface_hub")
"""Libraries that raise errors of a store."""

_ABSENT = (FileNotFoundError, NotADirectoryError, NotFound)


class StorageError(OSError):
    """A file that could not be read or written."""

    advice: ClassVar[str]
    # Unlike a decompressor's errors about damaged content, this error has an errno.
    errno = errno.EIO


class OutputError(StorageError):
    """Output that could not be read or written."""

    advice = (
        "check that --output_dir is a folder or bucket that this user may write to, and that it "
        "has room"
    )


class RetentionError(OutputError):
    """An object that a retention policy protects from replacement and deletion."""


class TasksUnreadableError(StorageError):
    """An input file that exists and cannot be read."""

    advice = (
        "every file of --tasks_file, and the target of every link, must exist and be readable by "
        "this user"
    )


@contextmanager
def storage_errors(path: str, kind: type[StorageError] = OutputError) -> Iterator[None]:
    """Convert errors of disks and stores to `kind`; do not change other errors."""
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
                f"deleting it ({refusal}); choose another --output_dir, or wait until it expires"
            ) from error
        cause = " ".join(str(error).split())
        raise kind(f"{path}: cannot be read or written ({cause}); {kind.advice}") from error


def in_bucket(path: str) -> bool:
    """Return True if this is a `gs://` path."""
    return path.startswith(BUCKET_SCHEME)


def is_url(path: str) -> bool:
    """Return True if this is a `gs://` path or a URL that fsspec can open."""
    return in_bucket(path) or is_remote(path)


def join(folder: str, *names: str) -> str:
    """Return the path of a name below a folder; names may contain "/"."""
    return "/".join([folder.rstrip("/"), *names])


def blob_of(path: str) -> Any:
    """Return the `google.cloud.storage.Blob` of a `gs://` path without a request."""
    bucket, _, name = path.removeprefix(BUCKET_SCHEME).partition("/")
    return bucket_client().bucket(bucket).blob(name)


def object_if_exists(path: str) -> Any | None:
    """Return the `Blob` of a `gs://` path with its current generation, size and CRC32C."""
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
    """Return True if the file exists. Raises errors of the store."""
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
    blob.reload()  # Seeking needs the size, and all reads must see one generation.
    # Raw, since the store would otherwise decompress gzip content.
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
    """Return the content of each file, or None, reading several at a time."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(read_if_exists, paths))


Measured = tuple[int, str]
"""Size of a file in bytes and its CRC32C in base64."""


def sizes_and_crc32c(paths: Iterable[str]) -> dict[str, Measured]:
    """Return size and CRC32C of the files that exist, all local or all in a bucket.

    The listing of a bucket has the checksums. Local files are read, several at a time.
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
    """Return size and CRC32C of all files whose paths begin with `prefix`."""
    if in_bucket(prefix):
        return dict(_list_measured(prefix))
    folder, _, start = prefix.rpartition("/")
    with storage_errors(folder), suppress(*_ABSENT):
        names = [name for name in os.listdir(folder or "/") if name.startswith(start)]
        return sizes_and_crc32c(join(folder, name) for name in names)
    return {}


def _prefixes(paths: Sequence[str]) -> set[str]:
    """Return prefixes for which few listings of a bucket find all paths."""
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
    """Delete files if they exist, in no particular order, in concurrent batches."""
    wanted = list(paths)
    size = DELETES_OF_A_BATCH if any(map(in_bucket, wanted)) else 1
    batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for _ in pool.map(_delete_batch, batches):
            pass


def _delete_batch(paths: Sequence[str]) -> None:
    """Delete objects in one request, and retry failed deletions one by one."""
    failed = paths
    if len(paths) > 1:
        with storage_errors(paths[0]), suppress(GoogleAPICallError):
            failed = DEFAULT_RETRY(_ask_to_delete)(paths)
    for path in failed:
        delete(path)


def _ask_to_delete(paths: Sequence[str]) -> list[str]:
    """Delete objects in one request, and return the ones that may still exist."""
    with bucket_client().batch(raise_exception=False) as batch:
        for path in paths:
            blob_of(path).delete()
    # The client has no public access to the responses; Google's examples read this attribute.
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
    """Return the message of a refusal because of a retention policy, otherwise None."""
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
