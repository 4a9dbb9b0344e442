"""Presets: model shapes for `random:NAME`, with seeded random weights.

Each preset is a `config.json`. For a published model, the file has the values of the text model. To
add a preset, add its file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from qwen.config import ModelConfig
from qwen.families import read_config

FOLDER = Path(__file__).parent


def preset_file(name: str) -> Path:
    """Return the path of a preset's `config.json`."""
    return FOLDER / f"{name}.json"


PRESETS: Mapping[str, ModelConfig] = {
    path.stem: read_config(json.loads(path.read_bytes()), path.name)
    for path in sorted(FOLDER.glob("*.json"))
}
