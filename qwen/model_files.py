"""Where a checkpoint's files lie: a local folder, a ``gs://`` folder, or the Hugging Face hub.

Remote files are copied to local disk, so that weights can be memory-mapped; small text files and
weights apart, since most processes need only the former. Files that could hold code or pickles
are never fetched.
"""

from __future__ import annotations

import atexit
import base64
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import google_crc32c

from qwen.checkpoint import (
    HEADER_LENGTH_BYTES,
    INDEX_FILE,
    MAX_HEADER_BYTES,
    checkpoint_files,
)

TEXT_FILES = ("*.json", "merges.txt", "*.jinja")
WEIGHT_FILES = ("*.safetensors",)


class ModelNotFoundError(ValueError):
    """A model path that leads to no model."""


class ModelFiles(Protocol):
    """Access to a checkpoint's files. Both folders may be the same."""

    def text_folder(self) -> Path:
        """A local folder with the configuration and the tokenizer."""
        ...

    def weights_folder(self) -> Path:
        """A local folder with the safetensors files too."""
        ...

    def headers_folder(self) -> Path:
        """A local folder in which the safetensors files have their sizes and headers.

        What follows the headers may be zeros there.
        """
        ...

    def weights_crc32c(self) -> dict[str, str]:
        """File name to CRC32C, in base64 as Cloud Storage shows it."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """A checkpoint on this machine."""

    folder: Path

    def text_folder(self) -> Path:
        return self.folder

    def weights_folder(self) -> Path:
        return self.folder

    def headers_folder(self) -> Path:
        return self.folder

    def weights_crc32c(self) -> dict[str, str]:
        return {file.name: _crc32c(file) for file in checkpoint_files(self.folder)}


@dataclass(frozen=True)
class HubFiles:
    """A repository of the Hugging Face hub, in the hub's own cache."""

    repository: str

    def text_folder(self) -> Path:
        return self._download(TEXT_FILES)

    def weights_folder(self) -> Path:
        return self._download((*TEXT_FILES, *WEIGHT_FILES))

    def headers_folder(self) -> Path:
        return self.weights_folder()

    def weights_crc32c(self) -> dict[str, str]:
        return LocalFiles(self.weights_folder()).weights_crc32c()

    def _download(self, patterns: tuple[str, ...]) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self.repository, allow_patterns=list(patterns)))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ModelNotFoundError(
                f"--model_path {self.repository!r} is neither a local folder nor could it be "
                f"fetched from the Hugging Face hub ({type(error).__name__}: {error})"
            ) from error


@dataclass(frozen=True)
class GcsFiles:
    """A folder of a Cloud Storage bucket; each file is downloaded once per process.

    Requests that fail for a moment are repeated by Google's library, for two minutes.
    """

    url: str
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def text_folder(self) -> Path:
        self._download(TEXT_FILES)
        return self._folder

    def weights_folder(self) -> Path:
        self._download((*TEXT_FILES, *WEIGHT_FILES))
        return self._folder

    def headers_folder(self) -> Path:
        folder = _folder_of_this_process("headers-")
        if (index := self.text_folder() / INDEX_FILE).exists():
            shutil.copy(index, folder)
        with self._bucket_errors():
            for name, blob in self._matching(WEIGHT_FILES):
                with (folder / name).open("wb") as file:
                    if blob.size:
                        prefix = blob.download_as_bytes(end=HEADER_LENGTH_BYTES - 1)
                        header = min(int.from_bytes(prefix, "little"), MAX_HEADER_BYTES)
                        file.write(blob.download_as_bytes(end=HEADER_LENGTH_BYTES - 1 + header))
                    file.truncate(blob.size)
        return folder

    def weights_crc32c(self) -> dict[str, str]:
        return {name: blob.crc32c for name, blob in self._matching(WEIGHT_FILES)}

    @cached_property
    def _folder(self) -> Path:
        return _folder_of_this_process("model-")

    @cached_property
    def _blobs(self) -> dict[str, Any]:
        """Name to blob, of the folder itself and not of what lies below."""
        from google.cloud import storage

        bucket, _, prefix = self.url.removeprefix("gs://").rstrip("/").partition("/")
        prefix = prefix and prefix + "/"
        with self._bucket_errors():
            listed = storage.Client().list_blobs(bucket, prefix=prefix, delimiter="/")
            blobs = {blob.name.removeprefix(prefix): blob for blob in listed}
        if not blobs:
            raise ModelNotFoundError(f"--model_path {self.url!r}: there are no files at that path")
        return blobs

    def _matching(self, patterns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, blob in sorted(self._blobs.items()):
            if any(fnmatch(name, pattern) for pattern in patterns):
                yield name, blob

    def _download(self, patterns: tuple[str, ...]) -> None:
        with self._lock, self._bucket_errors():
            for name, blob in self._matching(patterns):
                if not (self._folder / name).exists():
                    # Under another name, lest a file that broke off be taken for the whole.
                    partial = self._folder / f"{name}.partial"
                    blob.download_to_filename(partial)
                    self._check(name, partial, blob.crc32c)
                    partial.replace(self._folder / name)

    def _check(self, name: str, path: Path, expected: str) -> None:
        # The library checks no download that it had to take up again in the middle.
        if (found := _crc32c(path)) != expected:
            raise ModelNotFoundError(
                f"--model_path {self.url!r}: {name} arrived with CRC32C {found}, the bucket has "
                f"{expected}; it was damaged on its way or replaced meanwhile. Try again."
            )

    @contextmanager
    def _bucket_errors(self) -> Iterator[None]:
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption

        try:
            yield
        except (GoogleAPIError, GoogleAuthError, DataCorruption, OSError) as error:
            raise ModelNotFoundError(
                f"--model_path {self.url!r} cannot be read ({type(error).__name__}: {error})"
            ) from error


@cache
def find_files(model_path: str) -> ModelFiles:
    """Decides what kind of place a model path names.

    Raises:
      ModelNotFoundError: if it looks like a local folder and there is none.
    """
    if model_path.startswith("gs://"):
        return GcsFiles(model_path)
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        return LocalFiles(folder)
    if folder.is_absolute() or model_path.startswith((".", "~")) or model_path.count("/") != 1:
        raise ModelNotFoundError(
            f"--model_path {model_path!r}: there is no such folder. Give a local folder, a gs:// "
            "folder, a hub id such as Qwen/Qwen2.5-0.5B, or random:tiny."
        )
    return HubFiles(model_path)


def _folder_of_this_process(prefix: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _crc32c(path: Path) -> str:
    checksum = google_crc32c.Checksum()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            checksum.update(chunk)
    return base64.b64encode(checksum.digest()).decode()
