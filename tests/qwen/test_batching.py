from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus.parse import parse_tasks
from corpus.prompt import render
from corpus.task import Task
from corpus.template import load_template
from qwen.batching import ROW_ALIGNMENT, Packing, Step, plan_steps, row_lengths, step_inputs
from qwen.source import open_model

MOST_SHAPES = 12
MOST_SLOTS_PER_TOKEN = 1.05

LENGTHS = st.lists(
    st.one_of(st.integers(1, 40), st.integers(1, 1200), st.integers(1, 9300)), max_size=80
)
PACKINGS = st.builds(
    Packing,
    rows=st.sampled_from([1, 2, 3, 8]),
    slots=st.sampled_from([128, 512, 1000, 4096, 16_384]),
    row_length=st.sampled_from([1, 128, 500, 512, 2048, 4096]),
)


def arc_like_lengths(samples: int, seed: int = 0) -> list[int]:
    """Prompt lengths spread as those of ARC-AGI-1's training set: median 842, p95 3420."""
    rng = np.random.default_rng(seed)
    lengths = 842 * np.exp(rng.normal(0, np.log(3420 / 842) / 1.645, samples))
    return np.clip(lengths, 72, 9300).astype(int).tolist()


def slots_per_token(steps: list[Step]) -> float:
    return sum(step.shape.slots for step in steps) / sum(step.tokens for step in steps)


def shapes(steps: list[Step]) -> set[tuple[int, int]]:
    return {(step.shape.rows, step.shape.length) for step in steps}


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
    for step in plan:
        shape = step.shape
        assert step.placements
        assert shape.rows % packing.rows == 0
        assert shape.length % ROW_ALIGNMENT == 0
        assert shape.slots // packing.rows <= max(packing.slots, shape.length)
        taken = np.zeros((shape.rows, shape.length), int)
        for p in step.placements:
            taken[p.row, p.start : p.start + p.length] += 1
        assert taken.max() == 1, "samples overlap"
        assert taken.sum() == step.tokens, "a sample leaves its row"
        places = {(p.row, rank) for p, rank in zip(step.placements, step.segment_of, strict=True)}
        assert len(places) == len(step.placements)
        assert all(0 <= rank < shape.segments for rank in step.segment_of)


@settings(deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=30), PACKINGS, st.integers(0, 99))
def test_step_inputs_hold_each_token_where_it_was_placed(
    lengths: list[int], packing: Packing, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    token_ids = [rng.integers(1, 1000, length, dtype=np.int32) for length in lengths]
    for step in plan_steps(lengths, packing):
        inputs = step_inputs(step, token_ids)
        shape = (step.shape.rows, step.shape.length)
        assert inputs.token_ids.shape == inputs.positions.shape == inputs.segment_ids.shape == shape
        assert inputs.last_slots.shape == (step.shape.rows, step.shape.segments)
        for p, segment in zip(step.placements, step.segment_of, strict=True):
            slots = np.flatnonzero(inputs.segment_ids[p.row] == segment + 1)
            assert slots.tolist() == list(range(p.start, p.start + p.length))
            assert inputs.token_ids[p.row, slots].tolist() == token_ids[p.sample].tolist()
            assert inputs.positions[p.row, slots].tolist() == list(range(p.length))
            assert inputs.last_slots[p.row, segment] == slots[-1]
        padding = inputs.segment_ids == 0
        assert padding.sum() == step.shape.slots - step.tokens
        assert not inputs.token_ids[padding].any()
        assert not inputs.positions[padding].any()


ON_DEVICES = [
    Packing(),
    Packing(slots=4096, row_length=2048),
    Packing(slots=16_384, row_length=2048),
    Packing(rows=8, slots=4096, row_length=2048),
    Packing(rows=8, slots=16_384, row_length=2048),
]
"""As on CPUs, and on one and on eight TPU chips."""


@pytest.mark.parametrize("samples", [400, 512])
@pytest.mark.parametrize("packing", ON_DEVICES)
def test_arc_like_lengths_leave_little_padding_in_few_shapes(
    samples: int, packing: Packing
) -> None:
    for seed in range(3):
        plan = plan_steps(arc_like_lengths(samples, seed), packing)
        assert slots_per_token(plan) <= MOST_SLOTS_PER_TOKEN
        assert len(shapes(plan)) <= MOST_SHAPES


@settings(deadline=None)
@given(st.lists(st.integers(1, 9300), min_size=1, max_size=20), PACKINGS)
def test_a_few_samples_do_not_pay_for_a_whole_step(lengths: list[int], packing: Packing) -> None:
    """Steps shrink with what is left, down to one row per device that holds the longest sample."""
    left = sum(lengths)
    for step in plan_steps(lengths, packing):
        longest = max(p.length for p in step.placements)
        smallest = packing.rows * row_lengths(longest, min(512, packing.row_length))[-1]
        assert step.shape.slots <= max(left, 2 * smallest)
        left -= step.tokens


def test_the_arc_training_set_leaves_little_padding_in_few_shapes(arc_tasks: Path) -> None:
    template, tokenizer = load_template("digits"), open_model("random:tiny").tokenizer()
    with (arc_tasks / "training.json").open("rb") as stream:
        tasks = [item for item in parse_tasks(stream, "training.json") if isinstance(item, Task)]
    texts = [render(template, task, i).text for task in tasks for i in range(len(task.test))]
    assert len(tasks) == 400
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    plan = plan_steps([len(ids) for ids in encoded], Packing())
    assert slots_per_token(plan) <= MOST_SLOTS_PER_TOKEN
    assert len(shapes(plan)) <= MOST_SHAPES


@pytest.mark.parametrize("lengths", [[0], [5, -1, 3]])
def test_an_empty_sample_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=f"at least one token, got lengths {min(lengths)}"):
        plan_steps(lengths, Packing())


@pytest.mark.parametrize("name", ["rows", "slots", "row_length"])
def test_a_packing_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        Packing(**{name: 0})
