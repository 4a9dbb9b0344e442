"""What a folder or a file holds that is not a checkpoint in the Hugging Face layout."""

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
        "PyTorch's pickles, which can hold code and are not read",
        "If you trust them, convert them with transformers: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
    ),
    (".h5 .msgpack .onnx .npz", "of another framework", "Give the checkpoint for PyTorch"),
    (
        ".safetensors",
        "safetensors under another name",
        "Name a single file model.safetensors; for several, download model.safetensors.index.json",
    ),
)
"""Endings of files with weights, what they are, and what to do."""

CONTENTS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself (`git lfs pull`)"),
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a zip file, perhaps of PyTorch"),
    (b"\x80", "a pickle"),
    (b"<", "a web page"),
)
"""How files begin that are sometimes found in place of weights."""


def content_kind(start: bytes) -> str | None:
    """Name a file that is not in the safetensors format by its first bytes."""
    return next((what for magic, what in CONTENTS if start.startswith(magic)), None)


def absence(path: Path) -> str:
    """Say how a path does not exist."""
    if path.is_symlink():
        return f"is a link to {path.readlink()}, which does not exist"
    return "does not exist"


def adapter_in(folder: Path) -> str | None:
    """Describe the adapter in a folder, and say what to do with it; None if there is none."""
    file = folder / ADAPTER_FILE
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        base = "a model that it does not name"
    return f"{ADAPTER_FILE} makes the folder a LoRA adapter of {base}. {MERGE}"


def explain(folder: Path, names: Sequence[str]) -> str:
    """Say what a folder without a checkpoint holds, and what to do.

    Args:
        folder: the folder, or a local copy of its text files.
        names: all names in it.
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
