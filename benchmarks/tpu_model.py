"""How long a TPU takes, from what its compiler says: a model of time, without a TPU.

A step takes as long as the cycles that the compiler estimates for each operation of its programs,
plus those of the attention kernel, of which it estimates nothing: they are counted from the
instructions that it schedules for the kernel. Nothing overlaps but what the compiler overlaps
itself, the host keeps up, and nothing is read or written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qwen.batching import Step
from qwen.config import ModelConfig
from qwen.flops import flops_of, pair_flops, token_flops
from qwen.ops.splash import SPLASH_BLOCK


@dataclass(frozen=True)
class KernelCycles:
    """Instructions of the attention kernel for blocks of ``SPLASH_BLOCK`` and 64 head dimensions.

    Counted in the compiler's final schedule of it, one cycle each. Heads of more dimensions than a
    matrix unit is wide take as many passes of it more; that was not counted in a schedule.

    Attributes:
        pair: of a query block with a key block that it sees, for one head.
        query_block: to begin a query block and to write its result.
        visit: of every pair of blocks of a row, seen or not, for the loop and the copies.
        width: dimensions of a head that one pass of the matrix units takes.
        passed: of a pair, for each further pass.
    """

    pair: int
    query_block: int
    visit: int
    width: int
    passed: int


@dataclass(frozen=True)
class Chip:
    """What one chip can do.

    Attributes:
        topology, bounds: its name and host bounds for the compiler.
        peak: bfloat16 FLOP/s.
        clock: Hz, of the matrix units and of what the compiler counts. For its large products the
            compiler estimates 98 % of ``peak / clock`` FLOPs a cycle, so both mean the same cycle.
        memory: bytes.
        memory_speed, link_speed: bytes/s of the memory, and from a chip to its neighbors on a ring,
            half of all its links.
    """

    topology: str
    bounds: tuple[int, int, int] | None
    peak: float
    clock: float
    memory: float
    memory_speed: float
    link_speed: float
    kernel: KernelCycles


EXPERTS_BLOCK = 128
"""Rows of a block of the kernel that multiplies groups of rows."""

SUMMED_BYTES = 2
"""Of a value of an update that devices sum in a bfloat16 model."""

V5E, V6E = KernelCycles(1180, 630, 170, 128, 1024), KernelCycles(950, 260, 90, 256, 1024)

CHIPS = {
    "v5e 1x1": Chip("v5e:1x1", (1, 1, 1), 197e12, 1.5e9, 16e9, 819e9, 100e9, V5E),
    "v5e 2x4": Chip("v5e:2x4", None, 197e12, 1.5e9, 16e9, 819e9, 100e9, V5E),
    "v6e 1x1": Chip("v6e:1x1", (1, 1, 1), 918e12, 1.75e9, 32e9, 1640e9, 224e9, V6E),
    "v6e 2x4": Chip("v6e:2x4", None, 918e12, 1.75e9, 32e9, 1640e9, 224e9, V6E),
}


@dataclass(frozen=True)
class Work:
    """What a step asks of the busiest of its devices, all layers together.

    Attributes:
        tokens, slots: of all devices.
        useful_flops: of real tokens' products and of attention within their samples, shared by all
            devices alike.
        executed_flops: of all slots' products and of the blocks that the kernel sees.
        kernel_flops, kernel_cycles: the attention kernel's part.
        experts_cycles: of the kernel that multiplies groups of tokens with their experts, if the
            router treats all experts alike.
        sum_cycles: of the sums over the devices that share a layer.
    """

    tokens: int
    slots: int
    useful_flops: float
    executed_flops: float
    kernel_flops: float
    kernel_cycles: float
    experts_cycles: float
    sum_cycles: float

    @property
    def cycles(self) -> float:
        """Cycles of what the compiler does not estimate."""
        return self.kernel_cycles + self.experts_cycles + self.sum_cycles


def seen_blocks(step: Step) -> np.ndarray:
    """Pairs of blocks that the kernel computes for each row, [rows] int64.

    A query block sees the key blocks from the one in which the sample of its first slot begins.
    """
    rows, length = step.shape.rows, step.shape.length
    block = math.gcd(length, SPLASH_BLOCK)
    starts = np.tile(np.arange(length), (rows, 1))
    for placed in step.placements:
        starts[placed.row, placed.start : placed.start + placed.length] = placed.start
    first = starts[:, ::block] // block
    return (np.arange(length // block) - first + 1).sum(1)


def work_of(step: Step, config: ModelConfig, mesh: tuple[int, int], depth: int, chip: Chip) -> Work:
    """The work of ``depth`` whole layers without windows.

    Args:
        mesh: the devices that rows are split over, and those that heads are split over.
    """
    (data, parts), kernel = mesh, chip.kernel
    block = math.gcd(step.shape.length, SPLASH_BLOCK)
    blocks = step.shape.length // block
    rows = step.shape.rows // data
    seen = int(seen_blocks(step).reshape(data, rows).sum(1).max())
    share = block / SPLASH_BLOCK
    passes = -(-config.head_dim // kernel.width) - 1
    cycles = (
        seen * (kernel.pair + passes * kernel.passed) * share**2
        + rows * blocks * kernel.query_block * share
        + rows * blocks**2 * kernel.visit
    )
    kinds = [config.kind(layer) for layer in range(depth)]
    seen_pairs = seen * block**2
    kernel_flops = sum(pair_flops(config, kind) * seen_pairs for kind in kinds) / parts
    attending = sum(kind.mixer == "attention" for kind in kinds)
    lengths = [placed.length for placed in step.placements]
    products = sum(token_flops(config, kind) for kind in kinds)
    return Work(
        tokens=step.tokens,
        slots=step.shape.slots,
        useful_flops=flops_of(config, depth, step.tokens, lengths) / (data * parts),
        executed_flops=products * step.shape.slots / (data * parts) + kernel_flops,
        kernel_flops=kernel_flops,
        kernel_cycles=attending * config.num_attention_heads / parts * cycles,
        experts_cycles=sum(kind.experts for kind in kinds)
        * _experts_seconds(config, step.shape.slots / data, parts, chip)
        * chip.clock,
        sum_cycles=2
        * depth
        * _sum_seconds(config, step.shape.slots / data, parts, chip)
        * chip.clock,
    )


def _experts_seconds(config: ModelConfig, slots: float, parts: int, chip: Chip) -> float:
    """Time of a layer's experts on one of `parts` devices: of its products or of its weights."""
    experts = config.experts
    if experts is None:
        return 0.0
    own = experts.num_experts / parts
    # A block of rows that belong to two experts is multiplied with both.
    rows = slots * experts.num_experts_per_tok / parts + own * EXPERTS_BLOCK / 2
    values = 3 * config.hidden_size * experts.intermediate_size
    return max(2 * rows * values / chip.peak, 2 * own * values / chip.memory_speed)


def _sum_seconds(config: ModelConfig, slots: float, parts: int, chip: Chip) -> float:
    """Time to sum an update of the residual stream in a ring."""
    values = slots * config.hidden_size * 2 * (parts - 1) / parts
    return values * SUMMED_BYTES / chip.link_speed


def estimated_cycles(program: str) -> int:
    """The sum of the compiler's estimates for the operations of a compiled program's text.

    What a loop computes counts as often as the loop runs. The compiler estimates nothing for sorts,
    gathers and scatters, which move the tokens of experts.
    """
    return sum(cycles for _, cycles in operations(program))


def operations(program: str) -> Iterator[tuple[str, int]]:
    """Yield each operation that the compiler estimates, its line and all its cycles together."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", list[str]()
    for line in program.splitlines():
        if begins := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = computations[begins[2]] = []
            entry = begins[2] if begins[1] else entry
        else:
            lines.append(line)

    def within(name: str, times: int) -> Iterator[tuple[str, int]]:
        for line in computations[name]:
            if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
                yield line, times * int(estimate[1])
            if loop := re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                yield from within(loop[2], times * _rounds(computations[loop[1]]))

    yield from within(entry, 1)


def _rounds(condition: list[str]) -> int:
    """The number that the counter of a loop is compared with; loops over arrays begin at 0.

    The one loop whose end is not known beforehand, over blocks of the experts' tokens, has one
    round unless the router prefers the experts of a device.
    """
    found = [
        int(n) for line in condition for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", line)
    ]
    if len(found) > 1:
        raise ValueError(f"cannot tell how often a loop runs: {condition}")
    return found[0] if found else 1
