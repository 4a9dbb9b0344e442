"""Files of a checkpoint, in a local folder, in a `gs://` folder or on the Hugging Face hub.

Remote files are copied to local disk, so that weights can be memory-mapped. Text files and weights
are downloaded separately, because most processes need only the text files. Files that could contain
code or pickles are never downloaded.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from activation_dataset.checksum import crc32c_of_stream, to_text
from qwen.bucket import bucket_client
from qwen.checkpoint import INDEX_FILE, checkpoint_files
from qwen.load_once import load_once
from qwen.other_formats import absence, content_kind
from qwen.tokenizer import NAMED_CHAT_TEMPLATES

HEADER_LENGTH_BYTES = 8
"""Size of the little-endian header length with which a safetensors file begins."""

MAX_HEADER_BYTES = 100_000_000
"""Maximum size of a header in the safetensors library."""

OPTIONS = "Give a local folder, a gs:// folder, a hub id such as Qwen/Qwen2.5-0.5B, or random:tiny"

TEXT_FILES = ("*.json", "merges.txt", "*.jinja")
WEIGHT_FILES = ("*.safetensors",)


class ModelNotFoundError(ValueError):
    """A model path that does not lead to a model."""


class ModelFiles(ABC):
    """Files of a checkpoint, as local folders."""

    @abstractmethod
    def text_folder(self) -> Path:
        """Return a folder with the files of the configuration and the tokenizer."""

    @abstractmethod
    def weights_folder(self) -> Path:
        """Return a folder with the text files and the safetensors files."""

    def commit(self) -> str | None:
        """Return the commit of a repository on the hub; None for files elsewhere."""
        return None

    def names(self) -> list[str]:
        """Return the names of all files, including those that are never downloaded.

        Raises:
            ModelNotFoundError: if the files cannot be listed.
        """
        folder = self.text_folder()
        try:
            return sorted(os.listdir(folder))
        except OSError as error:
            raise ModelNotFoundError(f"{folder} cannot be listed ({error.strerror})") from error

    def headers_folder(self) -> Path:
        """Return a folder with safetensors files, which may have zeros after their headers."""
        return self.weights_folder()

    def weights_crc32c(self) -> dict[str, str]:
        """Return the checksum of each weights file by name, in base64 as in Cloud Storage."""
        files = {file: file.stat() for file in checkpoint_files(self.weights_folder())}
        return {
            file.name: _crc32c_of_version(file, status.st_size, status.st_mtime_ns)
            for file, status in files.items()
        }


@dataclass(frozen=True)
class LocalFiles(ModelFiles):
    """A checkpoint on this machine."""

    folder: Path

    def text_folder(self) -> Path:
        return self.folder

    def weights_folder(self) -> Path:
        return self.folder


@dataclass(frozen=True)
class HubFiles(ModelFiles):
    """A repository on the Hugging Face hub, in the hub's local cache.

    Attributes:
        repository: the id of the repository, such as `Qwen/Qwen2.5-0.5B`.
        revision: a branch, a tag or a commit; None for the main branch.
    """

    repository: str
    revision: str | None = None

    @load_once
    def commit(self) -> str:
        # The cache has one folder per commit, named after it.
        return self._download(TEXT_FILES, self.revision).name

    def text_folder(self) -> Path:
        return self._download(TEXT_FILES, self.commit())

    def weights_folder(self) -> Path:
        return self._download((*TEXT_FILES, *WEIGHT_FILES), self.commit())

    def names(self) -> list[str]:
        from huggingface_hub import list_repo_files

        try:
            return sorted(list_repo_files(self.repository, revision=self.commit()))
        # Errors without a network have several types, and the names are only for a message.
        except Exception:
            return super().names()

    def _download(self, patterns: tuple[str, ...], revision: str | None) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(
                snapshot_download(self.repository, revision=revision, allow_patterns=list(patterns))
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ModelNotFoundError(
                f"--model_path {self.repository!r} is not a local folder, and fetching it from the "
                f"Hugging Face hub at revision {revision or 'main'!r} failed "
                f"({type(error).__name__}: {error})"
            ) from error


@dataclass(frozen=True, eq=False)
class GcsFiles(ModelFiles):
    """A folder of a Cloud Storage bucket; each file is downloaded once per process.

    Google's library retries requests with transient errors for two minutes.
    """

    url: str

    def text_folder(self) -> Path:
        return self._fetch(TEXT_FILES)

    def weights_folder(self) -> Path:
        return self._fetch((*TEXT_FILES, *WEIGHT_FILES))

    def headers_folder(self) -> Path:
        """Download only the headers, and extend each file with zeros to its full size."""
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

    def names(self) -> list[str]:
        return sorted(self._blobs())

    def weights_crc32c(self) -> dict[str, str]:
        return {name: blob.crc32c for name, blob in self._matching(WEIGHT_FILES)}

    def _fetch(self, patterns: tuple[str, ...]) -> Path:
        with self._bucket_errors():
            for name, blob in self._matching(patterns):
                self._download(name, blob)
        return self._folder()

    def _matching(self, patterns: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, blob in sorted(self._blobs().items()):
            if any(fnmatch(name, pattern) for pattern in patterns):
                yield name, blob

    @load_once
    def _folder(self) -> Path:
        return _folder_of_this_process("model-")

    @load_once
    def _blobs(self) -> dict[str, Any]:
        """List the blobs of the folder and of its named chat templates, by name."""
        bucket, _, prefix = self.url.removeprefix("gs://").rstrip("/").partition("/")
        prefix = prefix and prefix + "/"
        with self._bucket_errors():
            listed = bucket_client().list_blobs(bucket, prefix=prefix, delimiter="/")
            blobs = {blob.name.removeprefix(prefix): blob for blob in listed}
            named = prefix + NAMED_CHAT_TEMPLATES + "/"
            for blob in bucket_client().list_blobs(bucket, prefix=named, delimiter="/"):
                if blob.name.endswith(".jinja"):
                    blobs[blob.name.removeprefix(prefix)] = blob
        if not blobs:
            raise ModelNotFoundError(f"--model_path {self.url!r}: there are no files at this path")
        return blobs

    @load_once
    def _download(self, name: str, blob: Any) -> None:
        # The temporary name keeps an interrupted download from looking like the complete file.
        partial = self._folder() / f"{name}.partial"
        partial.parent.mkdir(exist_ok=True)
        blob.download_to_filename(partial)
        # The library does not check a download that it resumed.
        if (found := _crc32c(partial)) != blob.crc32c:
            raise ModelNotFoundError(
                f"--model_path {self.url!r}: {name} arrived with CRC32C {found}, but the bucket "
                f"has {blob.crc32c}; it was damaged in transit or replaced during the download. "
                "Try again."
            )
        partial.replace(self._folder() / name)

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


@load_once
def find_files(model_path: str) -> ModelFiles:
    """Return the files at a model path.

    Raises:
        ModelNotFoundError: if the path cannot name a model. The message gives the reason.
    """
    if model_path.startswith("gs://"):
        return GcsFiles(model_path)
    # Unlike the methods of Path, these functions raise no errors.
    folder = os.path.expanduser(model_path)
    if os.path.isdir(folder):
        return LocalFiles(_snapshot_of(Path(folder)))
    if (reason := _why_not_local(model_path, folder)) is None:
        repository, _, revision = model_path.partition("@")
        return HubFiles(repository, revision or None)
    raise ModelNotFoundError(f"--model_path {model_path!r}: {reason}")


def _why_not_local(model_path: str, folder: str) -> str | None:
    """Explain why a path is not a folder; None if it may be a hub id."""
    if os.path.isfile(folder):
        with open(folder, "rb") as stream:
            kind = content_kind(stream.read(64))
        return f"it is {kind or 'a file'}. Give a folder in the Hugging Face layout"
    if os.path.islink(folder):
        return f"it {absence(Path(folder))}"
    if re.match(r"[A-Za-z]:|.*\\", model_path):
        return f"it looks like a Windows path, and there is no such folder here. {OPTIONS}"
    if url := re.match(r"(\w+):/", model_path):
        return f"URLs with {url[1]}: are not supported. {OPTIONS}, as a string, not as a Path"
    if folder != (stripped := folder.strip()) and os.path.isdir(stripped):
        return f"there is no such folder, but there is {stripped!r}, without spaces around it"
    repository, at, revision = model_path.partition("@")
    if repository.count("/") != 1 or model_path.startswith(("/", ".", "~")):
        slash = ", and a hub id ends without a slash" if model_path.endswith("/") else ""
        return f"there is no such folder{slash}. {OPTIONS}"
    if not _is_hub_id(repository) or (at and not revision):
        return f"there is no such folder, and it is not a hub id. {OPTIONS}"
    return None


def _is_hub_id(repository: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError:
        return False
    return True


def _snapshot_of(folder: Path) -> Path:
    """Return the snapshot in a folder of the hub's cache, and any other folder unchanged.

    Raises:
        ModelNotFoundError: if there is no snapshot, or several and `refs/main` names none of them.
    """
    if not folder.name.startswith("models--") or (folder / "config.json").exists():
        return folder
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    main = folder / "refs" / "main"
    named = [path for path in snapshots if main.is_file() and path.name == main.read_text().strip()]
    if len(chosen := named or snapshots) == 1:
        return chosen[0]
    raise ModelNotFoundError(
        f"--model_path '{folder}' is a folder of the hub's cache with {len(snapshots)} snapshots"
        + ("; pass one of them: " + ", ".join(map(str, snapshots[:8])) if snapshots else "")
    )


def _folder_of_this_process(prefix: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _crc32c(path: Path) -> str:
    with path.open("rb") as stream:
        return to_text(crc32c_of_stream(stream)[0])


@load_once
def _crc32c_of_version(path: Path, size: int, modified_ns: int) -> str:
    """Compute the checksum of a file once for each version of the file."""
    return _crc32c(path)
