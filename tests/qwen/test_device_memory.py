"""Steps that exceed the device's memory.

Tests cannot exhaust a device's memory reliably, so they raise the runtime's error for every step
with more than a few slots.
"""

import jax
import numpy as np
import pytest

from activation_dataset.sites import Site
from qwen.batching import StepInputs, StepShape
from qwen.extractor import ActivationExtractor, DeviceMemoryError
from qwen.programs import Captured, Programs

PROMPTS = [
    np.random.default_rng(n).integers(0, 1000, n).astype(np.int32)
    for n in (300, 200, 90, 40, 350, 7)
]


@pytest.fixture(scope="module")
def extractor() -> ActivationExtractor:
    return ActivationExtractor.load("random:tiny", [3], compute_dtype="float32", batch_size=2)


def limit_slots(monkeypatch: pytest.MonkeyPatch, slots: int) -> list[StepShape]:
    """Make larger steps fail as on a full device; return the shapes that ran."""
    ran: list[StepShape] = []
    run = Programs.run

    def limited(self: Programs, inputs: StepInputs, shape: StepShape) -> dict[Site, Captured]:
        if shape.slots > slots:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        ran.append(shape)
        return run(self, inputs, shape)

    monkeypatch.setattr(Programs, "run", limited)
    return ran


@pytest.mark.parametrize(("prompts", "slots"), [(PROMPTS, 512), (PROMPTS[:1], 384)])
def test_a_step_that_does_not_fit_runs_as_smaller_ones(
    extractor: ActivationExtractor,
    prompts: list[np.ndarray],
    slots: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def captured() -> dict[int, np.ndarray]:
        return {
            sample: vector
            for found in extractor.extract(prompts)
            for sample, vector in zip(found.samples, found.vectors[3], strict=True)
        }

    whole = captured()
    ran = limit_slots(monkeypatch, slots)
    parts = captured()
    assert list(parts) == list(whole), "the order differs"
    assert ran
    for sample, expected in whole.items():
        np.testing.assert_allclose(parts[sample], expected, rtol=1e-4, atol=1e-6)


def test_a_sample_that_does_not_fit_alone_is_named(extractor, monkeypatch) -> None:
    limit_slots(monkeypatch, 128)
    with pytest.raises(DeviceMemoryError, match="one sample of 350 tokens; lower --max_length"):
        list(extractor.extract(PROMPTS))
