"""Plan how the samples of a shard share fixed-shape steps. Pure functions, no JAX.

XLA compiles one program per shape, and every slot of a shape costs the same whether it holds a real
token or padding. The planner packs several samples into a row, so that nearly every slot is real,
and takes row lengths from a short ladder, so that few programs are compiled. Attention is masked by
segment; a row's unused tail is a segment of its own.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from qwen.ops import OpsName

ROW_ALIGNMENT = 128
"""Row lengths are multiples of this, the smallest block of the TPU attention kernel."""

SLOTS_PER_SEGMENT = 32
"""A row of L slots holds at most L / 32 samples, so pooled outputs have a fixed shape."""

TOKENS_PER_BATCH_ROW = 512
"""Token slots of one unit of batch size."""

SHORT_ROW = 2048
"""Preferred row length where attention visits every pair of a row's blocks, even to skip it: there
longer rows cost more than they save."""


@dataclass(frozen=True)
class StepShape:
    """The shape of one device step: `rows` x `length` token slots.

    `chosen` slots of each row, some of them unused, give a vector; None if every slot does.
    """

    rows: int
    length: int
    chosen: int | None = None

    @property
    def slots(self) -> int:
        return self.rows * self.length

    @property
    def segments(self) -> int:
        """Largest number of samples in a row."""
        return self.length // SLOTS_PER_SEGMENT


@dataclass(frozen=True)
class Placement:
    """The place of a sample in a step: `length` slots of `row` from `start` on."""

    sample: int
    row: int
    start: int
    length: int


@dataclass(frozen=True)
class Step:
    """One call of the model: a shape and the samples in it, in output order."""

    shape: StepShape
    placements: tuple[Placement, ...]

    @property
    def tokens(self) -> int:
        return sum(p.length for p in self.placements)

    @cached_property
    def segment_of(self) -> tuple[int, ...]:
        """The rank of each placement among the samples of its row."""
        seen = [0] * self.shape.rows
        ranks = []
        for placement in self.placements:
            ranks.append(seen[placement.row])
            seen[placement.row] += 1
        return tuple(ranks)


@dataclass(frozen=True)
class Packing:
    """The shapes of steps that a platform computes well.

    Attributes:
        rows: rows are a multiple of this, the devices along the mesh's data axis.
        slots: token slots per step and device that keep the device busy.
        row_length: the row length to prefer where samples fit in it, in tokens. Long rows pack
            tighter; where the attention kernel cannot skip other segments they cost more.
    """

    rows: int = 1
    slots: int = 4096
    row_length: int = 4096

    def shape(self, length: int, tokens: int) -> StepShape:
        """Return the step with rows of this length, halved until it has no more slots than tokens.

        It keeps one row per device even if that is more.
        """
        rows = max(1, self.slots // length)
        while rows > 1 and self.rows * rows * length > tokens:
            rows //= 2
        return StepShape(self.rows * rows, length)


def packing_for(ops: OpsName, batch_size: int, rows: int) -> Packing:
    """Return the packing for a platform's operations, for `rows` devices along the data axis.

    Operations for CPUs do not touch other samples of a row, so their rows are as long as a step.
    """
    slots = batch_size * TOKENS_PER_BATCH_ROW
    return Packing(rows, slots, slots if ops in ("xla", "amx") else min(slots, SHORT_ROW))


def row_lengths(longest: int, row_length: int) -> tuple[int, ...]:
    """Return the ladder of row lengths up to the first that holds `longest` tokens, ascending.

    Below `row_length` it halves down to 512 (for what is left at a shard's end), above it grows by
    1.5 and 1.33 in turn.
    """

    def aligned(length: float) -> int:
        return -(-int(length) // ROW_ALIGNMENT) * ROW_ALIGNMENT

    base = aligned(row_length)
    ladder = {base}
    shorter = base
    while shorter >= 1024:
        shorter = aligned(shorter / 2)
        ladder.add(shorter)
    longer = base
    while max(ladder) < longest:
        ladder.add(aligned(longer * 1.5))
        longer *= 2
        ladder.add(aligned(longer))
    ordered = sorted(ladder)
    return tuple(ordered[: bisect.bisect_left(ordered, max(longest, base)) + 1])


def plan_steps(lengths: Sequence[int], packing: Packing) -> list[Step]:
    """Pack samples of these lengths (tokens) into steps. Every sample appears exactly once.

    The longest sample left decides the row length of the next step; its rows are then filled, best
    fit first, with what is left. When less is left than a step holds, the steps get fewer and then
    shorter rows, the largest that can still be filled.

    Returns:
        Steps in the order in which they should run: long rows first. The result depends on nothing
        but the arguments; equal lengths keep the order of their indices.
    """
    if not lengths:
        return []
    ladder = row_lengths(max(lengths), packing.row_length)
    base = ladder.index(-(-packing.row_length // ROW_ALIGNMENT) * ROW_ALIGNMENT)
    # Ascending by length, and by descending index among equals, because samples leave at the end.
    waiting = sorted((length, -index) for index, length in enumerate(lengths))
    tokens = sum(lengths)
    steps = []
    while waiting:
        fitting = bisect.bisect_left(ladder, waiting[-1][0])
        shapes = [packing.shape(n, tokens) for n in ladder[fitting : max(fitting, base) + 1]]
        filled = [shape for shape in shapes if shape.slots <= tokens]
        step, waiting = _fill(filled[-1] if filled else shapes[0], waiting)
        tokens -= step.tokens
        steps.append(step)
    return steps


def _fill(shape: StepShape, waiting: list[tuple[int, int]]) -> tuple[Step, list[tuple[int, int]]]:
    """Fill one step, best fit first; return it and the samples that still wait."""
    left = list(waiting)
    placements = []
    for row in range(shape.rows):
        start = 0
        for _ in range(shape.segments):
            position = bisect.bisect_right(left, (shape.length - start, 0)) - 1
            if position < 0:
                break
            length, negative_index = left.pop(position)
            placements.append(Placement(-negative_index, row, start, length))
            start += length
    return Step(shape, tuple(placements)), left


def split_step(step: Step, rows: int) -> tuple[Step, ...] | None:
    """Split a step into two of about half the slots, with the same samples in the same order.

    For a device that has no memory for the whole step. One sample is put in the smallest step that
    holds it; None if it is in that already. New steps have `rows` rows, one for each device.
    """
    if len(step.placements) == 1:
        alone = _balanced(step.placements, rows)
        return (alone,) if alone.shape.slots < step.shape.slots else None
    middle, tokens = 1, step.placements[0].length
    while middle < len(step.placements) - 1 and 2 * tokens < step.tokens:
        tokens += step.placements[middle].length
        middle += 1
    return _balanced(step.placements[:middle], rows), _balanced(step.placements[middle:], rows)


def separate_samples(step: Step, rows: int) -> tuple[Step, ...]:
    """Make a step for each sample, in the same order; none if no two of them share a row."""
    if not any(step.segment_of):
        return ()
    return tuple(_balanced((placement,), rows) for placement in step.placements)


class SampleTokens(NamedTuple):
    """Tokens of one sample.

    Attributes:
        ids: [tokens] integers.
        positions: [n] ascending positions of the chosen tokens, whose vectors are stored or
            averaged; None if all are.
    """

    ids: np.ndarray
    positions: np.ndarray | None = None

    @property
    def chosen(self) -> int:
        """Number of the chosen tokens."""
        return len(self.ids) if self.positions is None else len(self.positions)


def with_chosen(steps: Sequence[Step], counts: Sequence[int]) -> list[Step]:
    """Give the steps the number of slots that hold the chosen tokens of their samples.

    Steps of one shape get the same number, a multiple of the segments of a row, so that few
    programs are compiled.

    Args:
        counts: chosen tokens of each sample.
    """
    most = dict.fromkeys([step.shape for step in steps], 0)
    for step in steps:
        rows = [0] * step.shape.rows
        for placement in step.placements:
            rows[placement.row] += counts[placement.sample]
        most[step.shape] = max(most[step.shape], *rows)
    return [
        replace(step, shape=replace(step.shape, chosen=_multiple(most[step.shape], step.shape)))
        for step in steps
    ]


def _multiple(chosen: int, shape: StepShape) -> int:
    return min(shape.length, max(1, -(-chosen // shape.segments)) * shape.segments)


def _balanced(placements: Sequence[Placement], rows: int) -> Step:
    """Place samples in their order, each in the row that is shortest so far."""
    ends = [0] * rows
    moved = []
    for placement in placements:
        row = ends.index(min(ends))
        moved.append(replace(placement, row=row, start=ends[row]))
        ends[row] += placement.length
    most = max(Counter(placement.row for placement in moved).values())
    needed = max(*ends, SLOTS_PER_SEGMENT * most)
    return Step(StepShape(rows, -(-needed // ROW_ALIGNMENT) * ROW_ALIGNMENT), tuple(moved))


@dataclass(frozen=True)
class StepInputs:
    """The arrays of one step, ready for the device.

    Attributes:
        token_ids: [rows, length] int32, 0 where there is no token.
        positions: [rows, length] int32, a token's position in its own sample; 0 for padding.
        segment_ids: [rows, length] int32, 1, 2, ... for the samples of a row, 0 for padding.
        averaged_ids: [rows, length] int32, the same for the chosen tokens, 0 for all others.
        chosen_slots: [rows, chosen] int32, the slots of the chosen tokens of a row, sample by
            sample; 0 where unused. [rows, 0] if every slot gives a vector.
        vectors: [rows] int32, vectors of each row: samples if they are averaged, else chosen
            tokens.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    averaged_ids: np.ndarray
    chosen_slots: np.ndarray
    vectors: np.ndarray

    @classmethod
    def empty(cls, shape: StepShape) -> StepInputs:
        """Make the inputs of a step without samples."""
        slots, chosen = (shape.rows, shape.length), (shape.rows, shape.chosen or 0)
        sizes = (slots, slots, slots, slots, chosen, (shape.rows,))
        return cls(*(np.zeros(size, np.int32) for size in sizes))


def step_inputs(step: Step, samples: Sequence[SampleTokens], averages: bool = False) -> StepInputs:
    """Lay out samples as the step's arrays.

    Args:
        averages: whether a sample has one vector, the mean of its chosen tokens.
    """
    inputs = StepInputs.empty(step.shape)
    for placement, segment in zip(step.placements, step.segment_of, strict=True):
        row, (token_ids, at) = placement.row, samples[placement.sample]
        slots = np.arange(placement.start, placement.start + placement.length, dtype=np.int32)
        inputs.token_ids[row, slots] = token_ids
        inputs.positions[row, slots] = np.arange(placement.length, dtype=np.int32)
        inputs.segment_ids[row, slots] = segment + 1
        given = slots if at is None else slots[at]
        inputs.averaged_ids[row, given] = segment + 1
        used = inputs.vectors[row]
        if step.shape.chosen is not None:
            inputs.chosen_slots[row, used : used + len(given)] = given
        inputs.vectors[row] = used + (1 if averages else len(given))
    return inputs
