"""Several threads with one extractor, as in a worker that holds a few bundles at once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, current_thread

import jax
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


def vectors(extractor: ActivationExtractor, samples: list[np.ndarray]) -> dict[int, np.ndarray]:
    return {
        sample: vector
        for captured in extractor.extract(samples)
        for sample, vector in zip(captured.samples, captured.vectors[1], strict=True)
    }


def test_each_shape_is_compiled_once_or_again_if_that_failed_and_nothing_is_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(write_checkpoint(tmp_path / "model"))
    options = {"compute_dtype": "float32", "batch_size": 1}
    compiled: list[StepShape] = []
    compile_shape = Programs.compile

    failed: list[StepShape] = []

    def counted(self: Programs, shape: StepShape) -> StepPrograms:
        if not failed and current_thread().name.startswith("compile"):
            failed.append(shape)  # In the background, where no one waits for the result.
            raise jax.errors.JaxRuntimeError("INTERNAL: the first compilation fails")
        compiled.append(shape)
        return compile_shape(self, shape)

    monkeypatch.setattr(Programs, "compile", counted)
    shared = ActivationExtractor.load(folder, [1], **options)
    at_once = Barrier(THREADS)

    def work(thread: int) -> dict[int, np.ndarray]:
        at_once.wait()
        return vectors(shared, shard(thread))

    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(work, range(THREADS)))
    assert Counter(compiled).most_common(1)[0][1] == 1
    assert len(set(compiled)) > 2, "the threads need different shapes"

    monkeypatch.undo()
    alone = ActivationExtractor.load(folder, [1], **options)
    for thread, ours in enumerate(found):
        expected = vectors(alone, shard(thread))
        assert ours.keys() == expected.keys()
        for sample, vector in expected.items():
            np.testing.assert_array_equal(ours[sample], vector)
