"""Tests that the model of a TPU's time counts the blocks of the attention kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.tpu_model import CHIPS, estimated_cycles, seen_blocks, work_of
from qwen.batching import Packing, Placement, Step, StepShape, packing_for, plan_steps
from qwen.flops import flops_of
from qwen.ops.splash import SPLASH_BLOCK
from qwen.presets import PRESETS

CONFIG = PRESETS["Qwen2.5-0.5B"]
CHIP = CHIPS["v5e 1x1"]
KERNEL = CHIP.kernel
LEAST_USEFUL = 0.85


def visible_pairs(step: Step, row: int) -> np.ndarray:
    """Return [length, length] bool: key slots that each query slot sees. Padding sees itself."""
    samples = -1 - np.arange(step.shape.length)
    for index, placed in enumerate(step.placements):
        if placed.row == row:
            samples[placed.start : placed.start + placed.length] = index
    return (samples[:, None] == samples) & np.tri(step.shape.length, dtype=bool)


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 1500), min_size=1, max_size=12),
    row_length=st.sampled_from([128, 384, 1024, 1536]),
)
def test_the_kernel_sees_the_blocks_that_hold_a_visible_pair(
    lengths: list[int], row_length: int
) -> None:
    for step in plan_steps(lengths, Packing(2, 2048, row_length)):
        found = seen_blocks(step)
        length = step.shape.length
        block = np.gcd(length, SPLASH_BLOCK)
        for row in range(step.shape.rows):
            blocks = visible_pairs(step, row).reshape(length // block, block, -1, block)
            assert found[row] == blocks.any((1, 3)).sum()


def test_the_work_of_one_sample_that_fills_its_row() -> None:
    step = Step(StepShape(1, 1024), (Placement(0, 0, 0, 1024),))
    work = work_of(step, CONFIG, (1, 1), 2, CHIP)
    products = flops_of(CONFIG, 2, 1024, [])
    assert work.useful_flops == products + 2 * 4 * 14 * 64 * (1024 * 1025 // 2)
    assert work.kernel_flops == 2 * 4 * 14 * 64 * 3 * 512**2
    assert work.executed_flops == products + work.kernel_flops
    of_a_head = 3 * KERNEL.pair + 2 * KERNEL.query_block + 4 * KERNEL.visit
    assert work.kernel_cycles == 2 * 14 * of_a_head


def test_a_step_takes_as_long_as_its_busiest_device() -> None:
    one_long = (Placement(0, 0, 0, 1024), *(Placement(i, 1, 128 * i, 128) for i in range(1, 8)))
    work = work_of(Step(StepShape(2, 1024), one_long), CONFIG, (2, 1), 1, CHIP)
    alone = work_of(Step(StepShape(1, 1024), one_long[:1]), CONFIG, (1, 1), 1, CHIP)
    assert work.kernel_cycles == alone.kernel_cycles


@pytest.mark.parametrize("devices", [1, 8])
def test_most_of_what_a_tpu_executes_is_useful(devices: int) -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(842 * np.exp(rng.normal(0, 0.85, 512)), 72, 9300).astype(int).tolist()
    steps = plan_steps(lengths, packing_for("splash", 8, devices))
    work = [work_of(step, CONFIG, (devices, 1), 24, CHIP) for step in steps]
    useful = sum(w.useful_flops for w in work)
    assert useful / sum(w.executed_flops for w in work) >= LEAST_USEFUL


def test_the_compilers_estimates_are_added_up() -> None:
    """A loop's operations count once per iteration, or once if the program decides their number."""
    program = """
%inside (arg: f32[8]) -> f32[8] {
  ROOT %add = f32[8]{0} add(%arg, %arg), backend_config={"estimated_cycles":"10"}
}
%ends (arg: s32[]) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(20)
  ROOT %lt = pred[]{:T(512)} compare(%arg, %constant.1), direction=LT
}
%depends (arg: s32[], end: s32[]) -> pred[] {
  ROOT %lt = pred[]{:T(512)} compare(%arg, %end), direction=LT
}
ENTRY %main (a: bf16[8]) -> bf16[8] {
  %fusion.1 = bf16[8]{0} fusion(%a), backend_config={"estimated_cycles":"1200","flags":[]}
  %splash.1 = bf16[8]{0} custom-call(%fusion.1), backend_config={"custom_call_config":{}}
  %while.1 = f32[8]{0} while(%b), condition=%ends, body=%inside, metadata={}
  %while.2 = f32[8]{0} while(%b), condition=%depends, body=%inside, metadata={}
  ROOT %copy = bf16[8]{0} copy(%splash.1), backend_config={"x":1,"estimated_cycles":"34"}
}
"""
    assert estimated_cycles(program) == 1234 + 20 * 10 + 10


def test_chips_that_share_a_layer_share_its_work() -> None:
    step = Step(StepShape(1, 1024), (Placement(0, 0, 0, 1024),))
    for name in ("Qwen3-30B-A3B", "Qwen3.5-27B"):
        one, eight = (work_of(step, PRESETS[name], (1, n), 4, CHIP) for n in (1, 8))
        assert one.useful_flops == pytest.approx(8 * eight.useful_flops)
        assert one.kernel_cycles == pytest.approx(8 * eight.kernel_cycles)
        assert one.sum_cycles == 0 < eight.sum_cycles
        assert (one.experts_cycles > 0) == (PRESETS[name].experts is not None)
