"""Input files that fsspec opens: of the Hugging Face hub, of S3, or of a web server.

A path of the hub is pinned to the commit that the launcher resolves, so that every worker reads the
same files, whatever is pushed meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, BinaryIO

HUB = "hf://"
SCHEMES = (HUB, "s3://", "https://", "http://")

_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(/.*)?")
_COMMIT = re.compile(r"@[0-9a-f]{40}(?=/)")


class RemoteInputError(OSError):
    """A path that cannot be used: of an unknown form, or without the library that opens it."""


def is_remote(path: str) -> bool:
    """Return True if fsspec opens the path."""
    return path.startswith(SCHEMES)


def pin(path: str) -> tuple[str, dict[str, str]]:
    """Return a path with the commit of its dataset on the hub, and that commit by its dataset.

    Other paths are returned unchanged, with no commit.

    Raises:
      RemoteInputError: if the path of the hub is not that of a dataset.
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
    """Return a path without the commits that `pin` put into it."""
    return _COMMIT.sub("", path)


def open_remote(path: str) -> BinaryIO:
    """Open a file to read its bytes as stored, seekable, in ranges as they are asked for."""
    files, name = _opened(path)
    stream: BinaryIO = files.open(name, "rb")
    return stream


def exists_remote(path: str) -> bool:
    """Return True if there is a file."""
    files, name = _opened(path)
    return bool(files.isfile(name))


def list_remote(folder: str) -> Iterator[tuple[str, int]]:
    """Yield the path and the bytes of every file below a folder; none on a web server."""
    if folder.startswith(("https://", "http://")):
        return
    files, name = _opened(folder)
    if not files.isdir(name):
        return
    root = name.rstrip("/")
    for path, details in sorted(files.find(root, detail=True).items()):
        yield folder.rstrip("/") + path.removeprefix(root), int(details.get("size") or 0)


def _opened(path: str) -> tuple[Any, str]:
    try:
        files, name = import_module("fsspec").core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise RemoteInputError(f"{path}: {error}") from error
    return files, str(name)
