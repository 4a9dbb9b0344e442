from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from qwen.families import family_of
from tests.qwen.checkpoints import SMALL, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]

MEASURE_LOADING = """
import sys, threading
import jax
from qwen.extractor import ActivationExtractor

def private_bytes():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])

jax.numpy.zeros(1).block_until_ready()
before = peak = private_bytes()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, private_bytes())

watcher = threading.Thread(target=watch)
watcher.start()
extractor = ActivationExtractor.load(sys.argv[1], range(6))
done.set()
watcher.join()
print(peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_loading_needs_the_memory_of_the_weights_and_of_one_parameter(tmp_path: Path) -> None:
    """On a CPU, device arrays are host memory too, so the weights count once."""
    config = replace(SMALL, vocab_size=1024, hidden_size=1024, intermediate_size=4096)
    config = replace(config, num_hidden_layers=6, head_dim=256)
    shapes = family_of(config).tensor_shapes(config)
    tensors = {name: np.ones(shape, ml_dtypes.bfloat16) for name, shape in shapes.items()}
    nbytes = [2 * math.prod(shape) for shape in shapes.values()]
    checkpoint = write_checkpoint(tmp_path, config, tensors)
    assert sum(nbytes) > 180e6
    # Fragmentation varies between processes, but a loader that keeps copies keeps them in each.
    assert min(peak_of_loading(checkpoint) for _ in range(2)) <= (
        sum(nbytes) + 4 * max(nbytes) + 20e6
    )


def peak_of_loading(checkpoint: Path) -> int:
    """Return the largest growth, in bytes, of the private memory of a process that loads."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE_LOADING, checkpoint],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
        stdout=subprocess.PIPE,
        timeout=120,
    )
    return int(result.stdout)
