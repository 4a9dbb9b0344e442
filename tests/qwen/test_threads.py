"""Loading and compiling in threads that start together, like the bundles of a worker."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, current_thread

import jax
import numpy as np
import pytest

from qwen.batching import StepShape
from qwen.extractor import ActivationExtractor
from qwen.load_once import load_once
from qwen.programs import Programs, StepPrograms

ROOT = Path(__file__).resolve().parents[2]
THREADS = 8

TOKENIZERS_AT_ONCE = f"""
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from qwen.source import open_model
at_once = Barrier({THREADS})
def load(_):
    at_once.wait()
    return open_model("random:tiny").tokenizer()
with ThreadPoolExecutor({THREADS}) as threads:
    assert len(set(map(id, threads.map(load, range({THREADS}))))) == 1
"""


def test_threads_that_start_together_load_each_value_once() -> None:
    loads: Counter[str] = Counter()
    at_once = Barrier(THREADS)

    @load_once
    def load(name: str) -> object:
        loads[name] += 1
        time.sleep(0.02)
        if name == "fails":
            raise ValueError(name)
        return object()

    def ask(thread: int) -> object:
        at_once.wait()
        return load("ab"[thread % 2])

    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(ask, range(THREADS)))
    for _ in range(2):  # A failure is not cached.
        with pytest.raises(ValueError, match="fails"):
            load("fails")
    assert loads == {"a": 1, "b": 1, "fails": 2}
    assert [value is found[0] for value in found] == [True, False] * (THREADS // 2)


def test_threads_that_start_together_share_one_tokenizer() -> None:
    """Run in a new process, because threads can break the first import of transformers."""
    command = [sys.executable, "-c", TOKENIZERS_AT_ONCE]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


# One extractor


def vectors(extractor: ActivationExtractor, thread: int) -> dict[int, bytes]:
    """Extract samples, some with shapes that all threads use and some only this thread."""
    rng = np.random.default_rng(thread)
    lengths = (40, 300, 7, 700 if thread % 2 else 900)
    return {
        sample: vector.tobytes()
        for captured in extractor.extract([rng.integers(0, 64, n, dtype=np.int32) for n in lengths])
        for sample, vector in zip(captured.samples, captured.vectors[1], strict=True)
    }


def extractor_of_tiny() -> ActivationExtractor:
    return ActivationExtractor.load("random:tiny", [1], compute_dtype="float32", batch_size=1)


def test_each_shape_is_compiled_once_or_again_if_that_failed_and_nothing_is_mixed_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[StepShape] = []
    failed: list[StepShape] = []
    compile_shape = Programs.compile

    def counted(self: Programs, shape: StepShape) -> StepPrograms:
        if not failed and current_thread().name.startswith("compile"):
            failed.append(shape)  # In the background, where nothing waits for the result.
            raise jax.errors.JaxRuntimeError("INTERNAL: the first compilation fails")
        compiled.append(shape)
        return compile_shape(self, shape)

    at_once = Barrier(THREADS)

    def work(thread: int) -> dict[int, bytes]:
        at_once.wait()
        return vectors(shared, thread)

    with monkeypatch.context() as patched:
        patched.setattr(Programs, "compile", counted)
        shared = extractor_of_tiny()
        with ThreadPoolExecutor(THREADS) as threads:
            found = list(threads.map(work, range(THREADS)))
    assert Counter(compiled).most_common(1)[0][1] == 1
    assert len(set(compiled)) > 2, "the threads need different shapes"
    alone = extractor_of_tiny()
    assert found == [vectors(alone, thread) for thread in range(THREADS)]
