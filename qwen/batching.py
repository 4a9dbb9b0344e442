"""Plan how the samples of a shard share fixed-shape steps. Pure functions, no JAX.

XLA compiles one program per shape, and every slot of a shape costs the same whether it holds a real
token or padding. The planner packs several samples into a row, so that nearly every slot holds a
real token, and takes row lengths from a short ladder, so that XLA compiles few programs. Attention
is masked by segment; the unused end of a row is a separate segment.
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
"""Divisor of every row length: the smallest block of the TPU attention kernel, in slots."""

SLOTS_PER_SEGMENT = 32
"""A row of L slots holds at most L / 32 samples, so pooled outputs have a fixed shape."""

TOKENS_PER_BATCH_ROW = 512
"""Token slots per unit of batch size."""

SHORT_ROW = 2048
"""Preferred row length, in slots, for kernels that iterate over every pair of blocks of a row,
including the pairs that they skip. Longer rows cost such kernels more than they save."""


@dataclass(frozen=True)
class StepShape:
    """Shape of one device step: `rows` x `length` token slots.

    Attributes:
        rows: number of rows.
        length: slots per row.
        chosen: slots per row that give a vector, including unused ones; None if every slot does.
    """

    rows: int
    length: int
    chosen: int | None = None

    @property
    def slots(self) -> int:
        """Token slots of all rows."""
        return self.rows * self.length

    @property
    def segments(self) -> int:
        """Largest number of samples in a row."""
        return self.length // SLOTS_PER_SEGMENT


@dataclass(frozen=True)
class Placement:
    """Position of a sample in a step: `length` slots of `row`, beginning at `start`."""

    sample: int
    row: int
    start: int
    length: int


@dataclass(frozen=True)
class Step:
    """One call of the model: a shape and its samples, in output order."""

    shape: StepShape
    placements: tuple[Placement, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all samples."""
        return sum(p.length for p in self.placements)

    @cached_property
    def segment_of(self) -> tuple[int, ...]:
        """Rank of each placement among the samples of its row."""
        seen = [0] * self.shape.rows
        ranks = []
        for placement in self.placements:
            ranks.append(seen[placement.row])
            seen[placement.row] += 1
        return tuple(ranks)


@dataclass(frozen=True)
class Packing:
    """Step shapes that a platform computes efficiently.

    Attributes:
        rows: divisor of the rows of a step: the number of devices along the mesh's data axis.
        slots: token slots per step and device, enough to keep the device busy.
        row_length: preferred row length in slots, for samples that fit. Long rows pack tighter but
            cost more if the attention kernel cannot skip other segments.
    """

    rows: int = 1
    slots: int = 4096
    row_length: int = 4096

    def shape(self, length: int, tokens: int) -> StepShape:
        """Return a shape with rows of this length and at most `tokens` slots.

        The number of rows is halved until the slots are few enough, but never below one row per
        device.
        """
        rows = max(1, self.slots // length)
        while rows > 1 and self.rows * rows * length > tokens:
            rows //= 2
        return StepShape(self.rows * rows, length)


def packing_for(ops: OpsName, batch_size: int, rows: int) -> Packing:
    """Return the packing for a platform's operations and `rows` devices along the data axis.

    Operations for CPUs skip the other samples of a row, so a CPU step has a single row per device.
    """
    slots = batch_size * TOKENS_PER_BATCH_ROW
    return Packing(rows, slots, slots if ops in ("xla", "amx") else min(slots, SHORT_ROW))


def row_lengths(longest: int, row_length: int) -> tuple[int, ...]:
    """Return the ladder of row lengths up to the first that holds `longest` tokens, ascending.

    Below `row_length`, lengths halve down to 512, for the last samples of a shard. Above it, they
    grow by factors of 1.5 and 1.33 alternately.
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

    The longest remaining sample decides the row length of the next step. The remaining samples then
    fill its rows, best fit first. When fewer tokens remain than a step holds, steps get fewer rows
    and then shorter ones, as large as the remaining tokens can fill.

    Returns:
        Steps in execution order: long rows first. The result depends only on the arguments; samples
        of equal length keep the order of their indices.
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
    """Fill one step, best fit first; return it and the remaining samples."""
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
    """Split a step that exceeds the device's memory into two of about half the slots.

    The new steps have `rows` rows, one for each device, and the same samples in the same order. A
    single sample moves to the smallest step that holds it. The result is None if that step is no
    smaller.
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
    """Make a step for each sample, in the same order; no steps if no two samples share a row."""
    if not any(step.segment_of):
        return ()
    return tuple(_balanced((placement,), rows) for placement in step.placements)


class SampleTokens(NamedTuple):
    """Tokens of one sample.

    Attributes:
        ids: [tokens] integer token ids.
        positions: [n] ascending positions of the chosen tokens, whose vectors are stored or
            averaged; None to choose all tokens.
    """

    ids: np.ndarray
    positions: np.ndarray | None = None

    @property
    def chosen(self) -> int:
        """Number of chosen tokens."""
        return len(self.ids) if self.positions is None else len(self.positions)


def with_chosen(steps: Sequence[Step], counts: Sequence[int]) -> list[Step]:
    """Set `chosen` in the shapes of steps so that the slots hold the chosen tokens of the samples.

    Steps of one shape get the same number, a multiple of the segments of a row, so that XLA
    compiles few programs.

    Args:
        steps: steps from `plan_steps`.
        counts: number of chosen tokens of each sample.
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
    """Place samples in order, each in the row that is shortest so far."""
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
    """Arrays of one step, ready for the device.

    Attributes:
        token_ids: [rows, length] int32, 0 where there is no token.
        positions: [rows, length] int32, a token's position in its own sample; 0 for padding.
        segment_ids: [rows, length] int32, 1, 2, ... for the samples of a row, 0 for padding.
        averaged_ids: [rows, length] int32, `segment_ids` of the chosen tokens, 0 for all others.
        chosen_slots: [rows, chosen] int32, the slots of the chosen tokens of a row, sample by
            sample; 0 where unused. [rows, 0] if every slot gives a vector.
        vectors: [rows] int32, number of vectors of each row: its samples if tokens are averaged,
            else its chosen tokens.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    averaged_ids: np.ndarray
    chosen_slots: np.ndarray
    vectors: np.ndarray

    @classmethod
    def empty(cls, shape: StepShape) -> StepInputs:
        """Return the inputs of a step without samples."""
        slots, chosen = (shape.rows, shape.length), (shape.rows, shape.chosen or 0)
        sizes = (slots, slots, slots, slots, chosen, (shape.rows,))
        return cls(*(np.zeros(size, np.int32) for size in sizes))


def step_inputs(step: Step, samples: Sequence[SampleTokens], averages: bool = False) -> StepInputs:
    """Lay out samples as the arrays of a step.

    Args:
        step: the shape and the placements.
        samples: all samples, indexed by `Placement.sample`.
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
