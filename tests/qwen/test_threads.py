"""Several threads with one extractor, as in a worker that holds a few bundles at once."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from qwen.batching import StepShape
from qwen.extractor import ActivationExtractor
from qwen.programs import Programs, StepPrograms
from tests.qwen.checkpoints import SMALL, write_checkpoint

THREADS = 4


def shard(thread: int) -> list[np.ndarray]:
    """Samples whose shapes are partly those of every thread, partly of this one alone."""
    rng = np.random.default_rng(thread)
    lengths = (40, 300, 7, 700 if thread % 2 else 900)
    return [rng.integers(0, SMALL.vocab_size, n, dtype=np.int32) for n in lengths]


class SlowToStart(ThreadPoolExecutor):
    """Gives other threads the time to ask for the same shape before this one has it."""

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        time.sleep(0.02)
        return super().submit(*arguments, **named)


def vectors(extractor: ActivationExtractor, samples: list[np.ndarray]) -> dict[int, np.ndarray]:
    return {
        sample: vector
        for captured in extractor.extract(samples)
        for sample, vector in zip(captured.samples, captured.layers[1], strict=True)
    }


def test_each_shape_is_compiled_once_and_nothing_is_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(write_checkpoint(tmp_path / "model"))
    options = {"compute_dtype": "float32", "batch_size": 1}
    compiled: list[StepShape] = []
    compile_shape = Programs.compile

    def counted(self: Programs, shape: StepShape) -> StepPrograms:
        compiled.append(shape)
        return compile_shape(self, shape)

    monkeypatch.setattr(Programs, "compile", counted)
    shared = ActivationExtractor.load(folder, [1], **options)
    monkeypatch.setattr(shared, "_compilers", SlowToStart(2))
    at_once = Barrier(THREADS)

    def work(thread: int) -> dict[int, np.ndarray]:
        at_once.wait()
        return vectors(shared, shard(thread))

    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(work, range(THREADS)))
    assert Counter(compiled).most_common(1)[0][1] == 1
    assert len(compiled) > 2, "the threads need different shapes"

    monkeypatch.undo()
    alone = ActivationExtractor.load(folder, [1], **options)
    for thread, ours in enumerate(found):
        expected = vectors(alone, shard(thread))
        assert ours.keys() == expected.keys()
        for sample, vector in expected.items():
            np.testing.assert_array_equal(ours[sample], vector)
