"""Capture on several virtual devices.

The number of devices is fixed when JAX starts, so a module captures in a new process.
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
    """Run a module with a folder as its argument; return the contents of `captures.npz`.

    Args:
        module: name of the module.
        folder: folder in which the module writes `captures.npz`.
        timeout: limit in seconds.
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
