"""Where a model comes from: a folder, a ``gs://`` folder, the Hugging Face hub, or a preset."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c

from qwen2.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    RandomWeights,
    Weights,
    checkpoint_files,
)
from qwen2.config import PRESETS, ModelConfigError, Qwen2Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRESET_PREFIX = "random:"
PRESET_TOKENIZER = Path(__file__).parent / "presets" / "tokenizer"
PRESET_SEED = 0

MODEL_FILES = ("*.safetensors", "*.json", "merges.txt", "*.jinja")
"""What is fetched of a remote model: weights and text, nothing that holds code or pickles."""


class ModelNotFoundError(ValueError):
    """A model path that leads to no model."""


class TokenizerError(ValueError):
    """A tokenizer that is missing or does not fit the model."""


@dataclass(frozen=True)
class ModelSource:
    """A model before its weights are loaded.

    Attributes:
      name: what the user called it.
      folder: the local folder with its files; None for a preset, whose weights are random.
    """

    name: str
    config: Qwen2Config
    folder: Path | None

    @property
    def is_random(self) -> bool:
        return self.folder is None

    def weights(self) -> Weights:
        """The tensors.

        Raises:
          CheckpointError: if the checkpoint has none, or they are damaged.
        """
        if self.folder is None:
            return RandomWeights(self.config, PRESET_SEED)
        return CheckpointFolder(self.folder)

    def weights_fingerprint(self) -> str:
        """Identifies the weights: CRC32C (hex) of every safetensors file, or the preset's seed."""
        if self.folder is None:
            return f"{self.name}, seed {PRESET_SEED}"
        return ",".join(f"{f.name}:{_crc32c(f):08x}" for f in checkpoint_files(self.folder))

    def tokenizer_fingerprint(self) -> str:
        """SHA-256 (hex) over the names and contents of the tokenizer's files."""
        folder = self.folder or PRESET_TOKENIZER
        digest = hashlib.sha256()
        names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
        for name in (*names, "chat_template.jinja"):
            if (folder / name).exists():
                digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
        return digest.hexdigest()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer.

        Raises:
          TokenizerError: if there is none, or it makes ids that the embedding does not have.
        """
        return _load_tokenizer(self.folder or PRESET_TOKENIZER, self.config.vocab_size)


@cache
def _load_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise TokenizerError(
            f"{folder}: no tokenizer could be loaded ({error}). Put the tokenizer.json of the "
            "model beside its weights."
        ) from error
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise TokenizerError(
            f"{folder}: the tokenizer makes ids up to {largest}, but the model's vocab_size is "
            f"{vocab_size}: they do not belong together. Copy the tokenizer of this model."
        )
    return tokenizer


def open_model(model_path: str) -> ModelSource:
    """Opens a local folder, ``gs://`` folder, hub id, or ``random:NAME`` preset.

    Remote files are fetched to local disk first, so that weights can be memory-mapped.

    Raises:
      ModelNotFoundError: if there is no model at that path.
      ModelConfigError: if its ``config.json`` is damaged or not of a model supported here.
    """
    if model_path.startswith(PRESET_PREFIX):
        preset = model_path.removeprefix(PRESET_PREFIX)
        if preset not in PRESETS:
            raise ModelNotFoundError(
                f"{model_path!r} is not a preset; there are: "
                + ", ".join(PRESET_PREFIX + name for name in PRESETS)
            )
        return ModelSource(model_path, PRESETS[preset], None)
    folder = _local_folder(model_path)
    return ModelSource(model_path, _read_config(folder / "config.json"), folder)


def _read_config(path: Path) -> Qwen2Config:
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"{path} does not exist: --model_path needs a folder in the Hugging Face layout "
            "(config.json, tokenizer.json, *.safetensors)"
        ) from error
    except ValueError as error:
        raise ModelConfigError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(fields, Mapping):
        raise ModelConfigError(f"{path}: expected a JSON object")
    return Qwen2Config.from_json(fields, str(path))


def _local_folder(model_path: str) -> Path:
    if model_path.startswith("gs://"):
        return _download_from_gcs(model_path)
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model_path.startswith((".", "~")) or model_path.count("/") != 1:
        raise ModelNotFoundError(
            f"--model_path {model_path!r}: there is no such folder. Give a local folder, a gs:// "
            "folder, a hub id such as Qwen/Qwen2.5-0.5B, or random:tiny."
        )
    return _download_from_hub(model_path)


@cache
def _download_from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(MODEL_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFoundError(
            f"--model_path {repository!r} is neither a local folder nor could it be fetched from "
            f"the Hugging Face hub ({type(error).__name__}: {error})"
        ) from error


@cache
def _download_from_gcs(model_path: str) -> Path:
    """Downloads a ``gs://`` folder once per process, checking each file's CRC32C."""
    from fnmatch import fnmatch

    from google.cloud import storage

    bucket_name, _, prefix = model_path.removeprefix("gs://").rstrip("/").partition("/")
    bucket = storage.Client().bucket(bucket_name)
    folder = Path(tempfile.mkdtemp(prefix="model-"))
    found = False
    for blob in bucket.list_blobs(prefix=prefix + "/" if prefix else ""):
        name = blob.name.rpartition("/")[2]
        if "/" in blob.name[len(prefix) :].lstrip("/") or not any(
            fnmatch(name, pattern) for pattern in MODEL_FILES
        ):
            continue
        blob.download_to_filename(folder / name, checksum="crc32c")
        found = True
    if not found:
        raise ModelNotFoundError(f"--model_path {model_path!r}: no model files at that path")
    return folder


def _crc32c(path: Path) -> int:
    checksum = google_crc32c.Checksum()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            checksum.update(chunk)
    return int.from_bytes(checksum.digest(), "big")


__all__ = [
    "CheckpointError",
    "ModelNotFoundError",
    "ModelSource",
    "TokenizerError",
    "open_model",
]
