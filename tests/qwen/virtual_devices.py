"""Captures on several virtual devices.

The number of devices is fixed when JAX starts, so a module captures as a program of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def captured_by(module: str, folder: Path, timeout: float) -> Mapping[str, np.ndarray]:
    """Run a module with the folder as argument, and return what it wrote to `captures.npz`.

    Args:
        timeout: seconds.
    """
    subprocess.run(
        [sys.executable, "-m", module, folder],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=timeout,
    )
    with np.load(folder / "captures.npz") as arrays:
        return dict(arrays)
