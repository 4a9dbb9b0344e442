"""A model before its weights are loaded: architecture, tokenizer and fingerprints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwen.checkpoint import CheckpointFolder, RandomWeights, Weights, tensors_of_model
from qwen.config import ModelConfig, ModelConfigError
from qwen.families import read_config
from qwen.model_files import LocalFiles, ModelFiles, ModelNotFoundError, find_files
from qwen.other_formats import ADAPTER_FILE, absence, adapter_in, explain
from qwen.presets import FOLDER, PRESETS
from qwen.tokenizer import is_tokenizer, load_tokenizer, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRESET_PREFIX = "random:"
PRESET_FILES = LocalFiles(FOLDER / "tokenizer")
PRESET_SEED = 0


class OtherWorkerError(ValueError):
    """A worker whose activations would differ from the rest of the run."""


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded.

    Attributes:
        name: model path that the user passed.
        config: architecture of the model.
        files: files of the checkpoint; for a preset, only of the tokenizer.
    """

    name: str
    config: ModelConfig
    files: ModelFiles

    @property
    def pinned_path(self) -> str:
        """Model path for other processes, which pins a hub repository to its current commit."""
        commit = self.files.commit()
        return self.name if commit is None else f"{self.name.partition('@')[0]}@{commit}"

    @property
    def is_random(self) -> bool:
        """True if the weights are random values from a seed."""
        return self.name.startswith(PRESET_PREFIX)

    def weights(self) -> Weights:
        """Open the tensors that activations depend on.

        Raises:
            CheckpointError: if tensors are missing or damaged, or the checkpoint has unknown ones.
        """
        if self.is_random:
            return RandomWeights(self.config, PRESET_SEED)
        return self._tensors_in(self.files.weights_folder())

    def check_weights(self) -> None:
        """Check that the weights files are complete and contain the tensors of the config.

        This reads only file sizes and headers, so that the launcher can refuse a job before it
        starts.

        Raises:
            CheckpointError: if a file or a tensor is missing, damaged or unknown.
        """
        if not self.is_random:
            self._tensors_in(self.files.headers_folder())

    def _tensors_in(self, folder: Path) -> CheckpointFolder:
        stored = CheckpointFolder(folder, self.files.names)
        return tensors_of_model(stored, self.config, self.name)

    def weights_fingerprint(self) -> str:
        """Return an identifier of the weights: the CRC32C of each file, or preset and seed."""
        if self.is_random:
            return f"{self.name}, seed {PRESET_SEED}"
        checksums = self.files.weights_crc32c()
        return ", ".join(f"{name}: {crc}" for name, crc in sorted(checksums.items()))

    def tokenizer_fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the names and contents of the tokenizer's files."""
        return tokenizer_fingerprint(self.files.text_folder())

    def tokenizer_if_any(self) -> PreTrainedTokenizerBase | None:
        """Return the model's tokenizer, or None if the checkpoint has none.

        Inputs of token ids need no tokenizer.

        Raises:
            TokenizerError: if the files of the tokenizer are damaged or contradict each other.
        """
        return self.tokenizer() if is_tokenizer(self.files.text_folder()) else None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the model's tokenizer, which is loaded once per process.

        Raises:
            TokenizerError: if there is no tokenizer, or its files are damaged or contradict each
                other.
        """
        return load_tokenizer(self.files.text_folder())


def open_model(
    model_path: str | os.PathLike[str], ignore_config: Sequence[str] = ()
) -> ModelSource:
    """Open a local folder, a `gs://` folder, `ORG/NAME[@REVISION]`, or a `random:NAME` preset.

    Fields of `config.json` that `ignore_config` names are ignored. If it names
    `adapter_config.json`, an adapter next to the model is ignored too.

    Raises:
        ModelNotFoundError: if there is no model at the path.
        ModelConfigError: if `config.json` is damaged or the model is not supported.
    """
    model_path = os.fspath(model_path)
    if model_path.startswith(PRESET_PREFIX):
        preset = model_path.removeprefix(PRESET_PREFIX)
        if preset not in PRESETS:
            raise ModelNotFoundError(
                f"--model_path {model_path!r} is not a preset; the presets are: "
                + ", ".join(PRESET_PREFIX + name for name in PRESETS)
            )
        return ModelSource(model_path, PRESETS[preset], PRESET_FILES)
    files = find_files(model_path)
    folder = files.text_folder()
    path = folder / "config.json"
    try:
        config = _read_config(path, ignore_config)
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"--model_path {model_path!r}: config.json {absence(path)}; "
            + explain(folder, files.names())
        ) from error
    if ADAPTER_FILE not in ignore_config and (adapter := adapter_in(folder)):
        raise ModelConfigError(
            f"--model_path {model_path!r}: {adapter}, or use the base model alone with "
            f"--ignore_config {ADAPTER_FILE}"
        )
    return ModelSource(model_path, config, files)


def _read_config(path: Path, ignored: Sequence[str]) -> ModelConfig:
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelConfigError(
            f"{path}: cannot be read ({error.strerror}); give this user permission to read it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelConfigError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(fields, Mapping):
        raise ModelConfigError(f"{path}: expected a JSON object")
    return read_config(fields, str(path), ignored)
