from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen.batching import (
    ROW_ALIGNMENT,
    Packing,
    SampleTokens,
    Step,
    plan_steps,
    row_lengths,
    split_step,
    step_inputs,
    with_chosen,
)

LENGTHS = st.lists(
    st.one_of(st.integers(1, 40), st.integers(1, 1200), st.integers(1, 9300)), max_size=80
)
PACKINGS = st.builds(
    Packing,
    rows=st.sampled_from([1, 2, 3, 8]),
    slots=st.sampled_from([128, 512, 1000, 4096, 16_384]),
    row_length=st.sampled_from([1, 128, 500, 512, 2048, 4096]),
)


def check_step(step: Step) -> None:
    """Check that the samples of a step stay within their rows and do not overlap."""
    shape = step.shape
    taken = np.zeros((shape.rows, shape.length), int)
    for p in step.placements:
        taken[p.row, p.start : p.start + p.length] += 1
    assert taken.max() == 1, "samples overlap"
    assert taken.sum() == step.tokens, "a sample exceeds its row"
    places = {(p.row, rank) for p, rank in zip(step.placements, step.segment_of, strict=True)}
    assert len(places) == len(step.placements)
    assert all(0 <= rank < shape.segments for rank in step.segment_of)


def check_little_padding_in_few_shapes(steps: list[Step]) -> None:
    assert sum(step.shape.slots for step in steps) <= 1.05 * sum(step.tokens for step in steps)
    assert len({step.shape for step in steps}) <= 12


@settings(deadline=None)
@given(LENGTHS, PACKINGS)
@example([], Packing())
@example([1] * 500, Packing(slots=512, row_length=512))
def test_every_sample_is_placed_once_in_steps_that_suit_the_devices(
    lengths: list[int], packing: Packing
) -> None:
    plan = plan_steps(lengths, packing)
    placed = [p for step in plan for p in step.placements]
    assert sorted(p.sample for p in placed) == list(range(len(lengths)))
    assert all(p.length == lengths[p.sample] for p in placed)
    assert plan == plan_steps(lengths, packing)
    row_lengths_in_order = [step.shape.length for step in plan]
    assert row_lengths_in_order == sorted(row_lengths_in_order, reverse=True)
    left = sum(lengths)
    for step in plan:
        shape = step.shape
        check_step(step)
        assert shape.rows % packing.rows == 0
        assert shape.length % ROW_ALIGNMENT == 0
        assert shape.slots // packing.rows <= max(packing.slots, shape.length)
        # Steps shrink with the remaining tokens, down to one row per device for the longest sample.
        longest = max(p.length for p in step.placements)
        smallest = packing.rows * row_lengths(longest, min(512, packing.row_length))[-1]
        assert shape.slots <= max(left, 2 * smallest)
        left -= step.tokens
        # If a device runs out of memory, smaller steps take the samples in the same order.
        smaller = split_step(step, packing.rows) or (step,)
        for part in smaller:
            check_step(part)
            assert part.shape.rows % packing.rows == 0
        order = [p.sample for part in smaller for p in part.placements]
        assert order == [p.sample for p in step.placements]


@settings(deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=30), PACKINGS, st.integers(0, 99))
def test_step_inputs_hold_each_token_where_it_was_placed(
    lengths: list[int], packing: Packing, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    token_ids = [rng.integers(1, 1000, length, dtype=np.int32) for length in lengths]
    chosen = [np.sort(rng.choice(n, rng.integers(0, n + 1), replace=False)) for n in lengths]
    samples = [*map(SampleTokens, token_ids, chosen)]
    for step in with_chosen(plan_steps(lengths, packing), [len(each) for each in chosen]):
        inputs = step_inputs(step, samples)
        shape = (step.shape.rows, step.shape.length)
        assert inputs.token_ids.shape == inputs.positions.shape == inputs.segment_ids.shape == shape
        assert inputs.chosen_slots.shape == (step.shape.rows, step.shape.chosen)
        places = [iter(row) for row in inputs.chosen_slots.tolist()]
        for p, segment in zip(step.placements, step.segment_of, strict=True):
            slots = np.flatnonzero(inputs.segment_ids[p.row] == segment + 1)
            assert slots.tolist() == list(range(p.start, p.start + p.length))
            assert inputs.token_ids[p.row, slots].tolist() == token_ids[p.sample].tolist()
            assert inputs.positions[p.row, slots].tolist() == list(range(p.length))
            found = [next(places[p.row]) for _ in chosen[p.sample]]
            assert found == slots[chosen[p.sample]].tolist()
            averaged = np.flatnonzero(inputs.averaged_ids[p.row] == segment + 1)
            assert averaged.tolist() == found
        padding = inputs.segment_ids == 0
        assert not inputs.token_ids[padding].any()
        assert not inputs.positions[padding].any()


@pytest.mark.parametrize("samples", [400, 512])
@pytest.mark.parametrize("slots", [4096, 16_384])
@pytest.mark.parametrize("rows", [1, 8])
def test_arc_like_lengths_leave_little_padding_in_few_shapes(
    samples: int, slots: int, rows: int
) -> None:
    """Lengths are distributed as in ARC-AGI-1's training set: median 842, p95 3420."""
    for seed in range(3):
        spread = np.random.default_rng(seed).normal(0, np.log(3420 / 842) / 1.645, samples)
        lengths = np.clip(842 * np.exp(spread), 72, 9300).astype(int).tolist()
        check_little_padding_in_few_shapes(plan_steps(lengths, Packing(rows, slots, 2048)))
