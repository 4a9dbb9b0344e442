"""Write a preset as a checkpoint folder, for tools that know checkpoints only.

python -m qwen.export_preset random:tiny FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import save_file

from qwen.checkpoint import SINGLE_FILE
from qwen.config import ModelConfig
from qwen.model_files import ModelNotFoundError
from qwen.source import open_model


def export_preset(name: str, folder: Path) -> None:
    """Write `config.json`, the weights and the tokenizer of a `random:` preset.

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
    weights = source.weights()
    tensors = {name: weights.read(name) for name in weights.shapes()}
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_json(source.config), indent=1) + "\n")


def config_json(config: ModelConfig) -> dict[str, object]:
    """Return the fields of a published checkpoint's `config.json`."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        **config.to_json(),
    }


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
