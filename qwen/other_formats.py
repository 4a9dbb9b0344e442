"""Descriptions of files and folders that are not checkpoints in the Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from qwen.families.tensor_names import DEQUANTIZE, MERGE

ADAPTER_FILE = "adapter_config.json"

FORMATS = (
    (".gguf", "GGUF, the format of llama.cpp", DEQUANTIZE),
    (
        ".bin .pt .pth .ckpt",
        "a PyTorch pickle, which can contain code and is not read",
        "If you trust them, convert them with transformers: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
    ),
    (".h5 .msgpack .onnx .npz", "a file of another framework", "Give the checkpoint for PyTorch"),
    (
        ".safetensors",
        "a safetensors file with another name",
        "Name a single file model.safetensors; for several, download model.safetensors.index.json",
    ),
)
"""Suffixes of weights files in other formats, their descriptions, and what to do."""

CONTENTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run `git lfs pull`)"),
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a zip file, perhaps from PyTorch"),
    (b"\x80", "a pickle"),
    (b"<", "a web page"),
)
"""First bytes and descriptions of files that users sometimes have instead of weights."""


def content_kind(start: bytes) -> str | None:
    """Name the format of a file by its first bytes; None if unknown."""
    return next((what for magic, what in CONTENTS if start.startswith(magic)), None)


def absence(path: Path) -> str:
    """Explain why a path does not exist; a broken link is named as such."""
    if path.is_symlink():
        return f"is a link to {path.readlink()}, which does not exist"
    return "does not exist"


def adapter_in(folder: Path) -> str | None:
    """Describe the adapter in a folder and what to do with it; None if there is none."""
    file = folder / ADAPTER_FILE
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        base = "an unnamed model"
    return f"{ADAPTER_FILE} makes the folder a LoRA adapter of {base}. {MERGE}"


def explain(folder: Path, names: Sequence[str]) -> str:
    """Describe the contents of a folder without a checkpoint, and what to do.

    Args:
        folder: the folder, or a local copy of its text files.
        names: names of all files in the folder.
    """
    if adapter := adapter_in(folder):
        return adapter
    if set(names) & {"model.safetensors", "model.safetensors.index.json"}:
        names = [name for name in names if not name.endswith(".safetensors")]
    for endings, what, remedy in FORMATS:
        if found := [name for name in names if name.lower().endswith(tuple(endings.split()))]:
            return f"{found[0]} is {what}. {remedy}"
    if below := list(islice(_checkpoints_below(folder), 3)):
        return f"the checkpoint may be {' or '.join(map(str, below))}"
    what = f"has {', '.join(names[:5])}" if names else "is empty"
    return (
        f"it {what}. --model_path needs a folder in the Hugging Face layout (config.json, "
        "tokenizer.json, model.safetensors)"
    )


def _checkpoints_below(folder: Path) -> Iterator[Path]:
    for depth in range(1, 4):
        yield from sorted(file.parent for file in folder.glob("*/" * depth + "config.json"))
