"""Shapes that `random:NAME` fills with seeded random weights, each as a `config.json`.

Those of published models have the values of their text part. To add a preset, add its file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from qwen.config import ModelConfig
from qwen.families import read_config

FOLDER = Path(__file__).parent


def preset_file(name: str) -> Path:
    """Return the `config.json` of a preset."""
    return FOLDER / f"{name}.json"


PRESETS: Mapping[str, ModelConfig] = {
    path.stem: read_config(json.loads(path.read_bytes()), path.name)
    for path in sorted(FOLDER.glob("*.json"))
}
