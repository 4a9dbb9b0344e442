"""Input files that fsspec opens: from the Hugging Face hub, S3 or a web server.

The launcher pins a path of the hub to a commit, so that every worker reads the same files even if
somebody pushes meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, BinaryIO

HUB = "hf://"
WEB = ("https://", "http://")
SCHEMES = (HUB, "s3://", *WEB)

_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(/.*)?")
_COMMIT = re.compile(r"^(hf://datasets/[^/@]+/[^/@]+)@[0-9a-f]{40}(?=/)")

_AS_STORED = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
"""Ranges must address the stored file, not a decoded or recompressed form."""


class RemoteInputError(OSError):
    """A path with an unknown form, or without the library that opens it."""


def is_remote(path: str) -> bool:
    """Return True if fsspec opens the path."""
    return path.startswith(SCHEMES)


def pin(path: str) -> tuple[str, dict[str, str]]:
    """Return a path with the commit of its dataset on the hub, and the commits by dataset.

    Other paths are returned unchanged, with no commit.

    Raises:
        RemoteInputError: if the path on the hub is not the path of a dataset.
        OSError: if the hub does not have the dataset or the revision, or does not answer.
    """
    if not path.startswith(HUB):
        return path, {}
    match = _DATASET.fullmatch(path)
    if match is None:
        raise RemoteInputError(f"{path}: expected hf://datasets/ORG/NAME[@REVISION]/PATH")
    from huggingface_hub import HfApi

    name, revision, rest = match[1], match[2], match[3] or ""
    commit = str(HfApi().dataset_info(name, revision=revision).sha)
    return f"{HUB}datasets/{name}@{commit}{rest}", {name: commit}


def without_commit(path: str) -> str:
    """Return a path without the commit that `pin` added."""
    return _COMMIT.sub(r"\1", path)


def without_query(path: str) -> str:
    """Return a path without the query of a URL, so that it ends with the file's suffix."""
    return path.partition("?")[0] if path.startswith(WEB) else path


def open_remote(path: str) -> BinaryIO:
    """Open a file for seekable reads of its bytes as stored, by ranges.

    Raises:
        RemoteInputError: if a web server does not send ranges of the stored bytes.
    """
    files, name = _opened(path)
    if path.startswith(WEB):
        _check_ranges(files, name)
    stream: BinaryIO = files.open(name, "rb")
    return stream


def exists_remote(path: str) -> bool:
    """Return True if the file exists."""
    files, name = _opened(path)
    return bool(files.isfile(name))


def _check_ranges(files: Any, url: str) -> None:
    try:
        with files.open(url, "rb", block_size=1, cache_type="none") as stream:
            stream.seek(1)
            stream.read(1)
    except ValueError as error:
        raise RemoteInputError(
            "the web server does not send ranges of the file as it is stored; download it and give "
            "the local path"
        ) from error


def list_remote(folder: str) -> Iterator[tuple[str, int]]:
    """Yield the path and the bytes of every file below a folder; none on a web server."""
    if folder.startswith(WEB):
        return
    files, name = _opened(folder)
    if not files.isdir(name):
        return
    root = name.rstrip("/")
    for path, details in sorted(files.find(root, detail=True).items()):
        yield folder.rstrip("/") + path.removeprefix(root), int(details.get("size") or 0)


def _opened(path: str) -> tuple[Any, str]:
    options = {"client_kwargs": _AS_STORED} if path.startswith(WEB) else {}
    try:
        files, name = import_module("fsspec").core.url_to_fs(path, **options)
    except (ImportError, ValueError) as error:
        raise RemoteInputError(f"{path}: {error}") from error
    return files, str(name)
