"""Write a preset as a checkpoint folder, for tools that read only checkpoints.

python -m qwen.export_preset random:tiny FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import save_file

from qwen.checkpoint import INDEX_FILE, SINGLE_FILE
from qwen.model_files import ModelNotFoundError
from qwen.presets import preset_file
from qwen.source import PRESET_PREFIX, open_model

FILE_VALUES = 2_000_000_000
"""Maximum number of values in a file, unless a single tensor has more."""


def export_preset(name: str, folder: Path) -> None:
    """Write `config.json`, the weights and the tokenizer of a `random:` preset.

    Raises:
        ModelNotFoundError: if the preset does not exist.
        OSError: if the folder cannot be written.
    """
    source = open_model(name)
    if not source.is_random:
        raise ModelNotFoundError(
            f"{name} is already a checkpoint; only random: presets can be exported"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.files.text_folder().iterdir():
        shutil.copy(file, folder)
    shutil.copy(preset_file(name.removeprefix(PRESET_PREFIX)), folder / "config.json")
    weights = source.weights()
    parts: list[list[str]] = [[]]
    values = 0
    for tensor, shape in weights.shapes().items():
        values += math.prod(shape)
        if parts[-1] and values > FILE_VALUES:
            parts.append([])
            values = math.prod(shape)
        parts[-1].append(tensor)
    files = {
        SINGLE_FILE
        if len(parts) == 1
        else f"model-{number:05}-of-{len(parts):05}.safetensors": names
        for number, names in enumerate(parts, 1)
    }
    for file_name, names in files.items():
        tensors = {tensor: weights.read(tensor) for tensor in names}
        save_file(tensors, folder / file_name, metadata={"format": "pt"})
    if len(files) > 1:
        index = {tensor: file_name for file_name, names in files.items() for tensor in names}
        (folder / INDEX_FILE).write_text(
            json.dumps({"metadata": {}, "weight_map": index}, indent=1) + "\n"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m qwen.export_preset", description=__doc__)
    parser.add_argument("preset", help="such as random:tiny")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        export_preset(options.preset, options.folder)
    except (ModelNotFoundError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
