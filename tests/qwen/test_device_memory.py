"""What happens where the device has no memory for a step.

No device here can be made to run out of its own memory at will, so the runtime's error is raised in
its place for every step of more than a few slots.
"""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from activation_dataset.sites import Site
from qwen.batching import Packing, StepInputs, StepShape, plan_steps, split_step
from qwen.extractor import ActivationExtractor, DeviceMemoryError
from qwen.programs import Captured, Programs


@pytest.fixture(scope="module")
def extractor() -> ActivationExtractor:
    return ActivationExtractor.load(
        "random:tiny", range(2, 4), compute_dtype="float32", batch_size=2
    )


@pytest.fixture
def prompts() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 1000, n).astype(np.int32) for n in (300, 200, 90, 40, 350, 7)]


def limit_slots(monkeypatch: pytest.MonkeyPatch, slots: int) -> list[StepShape]:
    """Makes larger steps fail as a full device does; gives the shapes that ran."""
    ran: list[StepShape] = []
    run = Programs.run

    def limited(self: Programs, inputs: StepInputs, shape: StepShape) -> dict[Site, Captured]:
        if shape.slots > slots:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        ran.append(shape)
        return run(self, inputs, shape)

    monkeypatch.setattr(Programs, "run", limited)
    return ran


def captured(
    extractor: ActivationExtractor, prompts: list[np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    for found in extractor.extract(prompts):
        yield from zip(found.samples, found.vectors[3], strict=True)


def test_a_step_that_does_not_fit_runs_as_smaller_ones(extractor, prompts, monkeypatch):
    whole = list(captured(extractor, prompts))
    ran = limit_slots(monkeypatch, 512)
    parts = list(captured(extractor, prompts))
    assert [sample for sample, _ in parts] == [sample for sample, _ in whole]
    assert max(shape.slots for shape in ran) <= 512
    for (_, vector), (_, expected) in zip(parts, whole, strict=True):
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-6)


def test_one_sample_in_a_step_made_for_more_is_given_a_smaller_one(extractor, prompts, monkeypatch):
    [(_, expected)] = captured(extractor, prompts[:1])
    ran = limit_slots(monkeypatch, 384)
    [(_, vector)] = captured(extractor, prompts[:1])
    assert ran == [StepShape(1, 384)]
    np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-6)


def test_a_sample_that_does_not_fit_alone_is_named(extractor, prompts, monkeypatch):
    limit_slots(monkeypatch, 128)
    with pytest.raises(DeviceMemoryError, match="one sample of 350 tokens; lower --max_length"):
        list(extractor.extract(prompts))


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_halves_keep_samples_and_order(rows):
    lengths = [900, 700, 100, 100, 64, 33, 32, 1, 1, 1] * (2 * rows)
    (step, *_) = plan_steps(lengths, Packing(rows=rows, slots=2048, row_length=2048))
    halves = split_step(step, rows)
    assert halves is not None
    order = [p.sample for half in halves for p in half.placements]
    assert order == [p.sample for p in step.placements]
    for half in halves:
        assert half.shape.rows == rows
        assert half.shape.slots < step.shape.slots
        taken = np.zeros((half.shape.rows, half.shape.length), int)
        for p in half.placements:
            taken[p.row, p.start : p.start + p.length] += 1
        assert taken.max() == 1
        assert taken.sum() == half.tokens
        assert max(half.segment_of) < half.shape.segments
