"""A preset as a checkpoint folder, for tools that know checkpoints only.

python -m qwen.export_preset random:tiny FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from qwen.checkpoint import DTYPES, SINGLE_FILE, Weights
from qwen.config import ModelConfig
from qwen.model_files import ModelNotFoundError
from qwen.source import open_model


def export_preset(name: str, folder: Path) -> None:
    """Writes ``config.json``, the weights and the tokenizer of a ``random:`` preset.

    Raises:
      ModelNotFoundError: if there is no such preset.
      OSError: if the folder cannot be written.
    """
    source = open_model(name)
    if not source.is_random:
        raise ModelNotFoundError(f"{name} is a checkpoint already; only presets are exported")
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.files.text_folder().iterdir():
        shutil.copy(file, folder)
    write_safetensors(folder / SINGLE_FILE, source.weights())
    (folder / "config.json").write_text(json.dumps(config_json(source.config), indent=1) + "\n")


def config_json(config: ModelConfig) -> dict[str, object]:
    """The fields of a published checkpoint's ``config.json``."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        **asdict(config),
    }


def write_safetensors(path: Path, weights: Weights) -> None:
    """Writes the tensors one by one, so that memory holds one of them."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    dtypes = {name: weights.read(name).dtype for name in weights.shapes()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in weights.shapes().items():
        end = position + math.prod(shape) * dtypes[name].itemsize
        header[name] = {
            "dtype": names[dtypes[name]],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in weights.shapes():
            stream.write(np.ascontiguousarray(weights.read(name)).view(np.uint8).data)


def main(arguments: Sequence[str] | None = None) -> int:
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
