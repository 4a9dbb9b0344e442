"""Prediction of a TPU's step times from compiler estimates, without a TPU.

The time of a step is the sum of the cycles that the compiler estimates for the operations of its
programs and the cycles of the attention kernel, which the compiler does not estimate. The kernel's
cycles are the number of instructions that the compiler schedules for it. The prediction assumes no
overlap beyond the compiler's, a host that keeps up, and no reading or writing.
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
    """Instructions of the attention kernel for blocks of `SPLASH_BLOCK` and 64 head dimensions.

    The counts are from the compiler's final schedule; an instruction takes one cycle. Only `passed`
    is an estimate. It applies to heads with more dimensions than the width of a matrix unit.

    Attributes:
        pair: instructions for a query block and a visible key block, for one head.
        query_block: instructions to begin a query block and to write its result.
        visit: instructions of the loop and the copies for each pair of blocks of a row, visible or
            not.
        width: head dimensions that one pass of the matrix units processes.
        passed: instructions per pair for each additional pass.
    """

    pair: int
    query_block: int
    visit: int
    width: int
    passed: int


@dataclass(frozen=True)
class Chip:
    """Specifications of one chip.

    Attributes:
        topology: name of the topology for the compiler.
        bounds: host bounds for the compiler.
        peak: peak bfloat16 FLOP/s.
        clock: frequency in Hz of the matrix units and of the compiler's cycles. For large products,
            the compiler estimates 98 % of `peak / clock` FLOPs per cycle, so both use the same
            cycle.
        memory: bytes of memory.
        memory_speed: bytes/s of the memory.
        link_speed: bytes/s from a chip to its neighbors on a ring, over half of all its links.
        kernel: instructions of the attention kernel.
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
"""Rows per block of the kernel that multiplies groups of rows."""

SUMMED_BYTES = 2
"""Bytes per value of an update that devices sum in a bfloat16 model."""

V5E, V6E = KernelCycles(1180, 630, 170, 128, 1024), KernelCycles(950, 260, 90, 256, 1024)

CHIPS = {
    "v5e 1x1": Chip("v5e:1x1", (1, 1, 1), 197e12, 1.5e9, 16e9, 819e9, 100e9, V5E),
    "v5e 2x4": Chip("v5e:2x4", None, 197e12, 1.5e9, 16e9, 819e9, 100e9, V5E),
    "v6e 1x1": Chip("v6e:1x1", (1, 1, 1), 918e12, 1.75e9, 32e9, 1640e9, 224e9, V6E),
    "v6e 2x4": Chip("v6e:2x4", None, 918e12, 1.75e9, 32e9, 1640e9, 224e9, V6E),
}


@dataclass(frozen=True)
class Work:
    """Work of a step for the busiest device, over all layers.

    Attributes:
        tokens: number of tokens of all devices.
        slots: number of token slots of all devices.
        useful_flops: FLOPs of the products of real tokens and of attention within samples, divided
            equally among all devices.
        executed_flops: FLOPs of the products of all slots and of the blocks that the attention
            kernel computes.
        kernel_flops: FLOPs of the attention kernel.
        kernel_cycles: cycles of the attention kernel.
        experts_cycles: cycles of the kernel that multiplies groups of tokens with their experts, if
            the router treats all experts equally.
        sum_cycles: cycles of the sums over the devices that share a layer.
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
        """Cycles of the operations that the compiler does not estimate."""
        return self.kernel_cycles + self.experts_cycles + self.sum_cycles


def seen_blocks(step: Step) -> np.ndarray:
    """Return the number of pairs of blocks that the kernel computes for each row, [rows] int64.

    A query block sees key blocks from the block in which the sample of its first slot starts.
    """
    rows, length = step.shape.rows, step.shape.length
    block = math.gcd(length, SPLASH_BLOCK)
    starts = np.tile(np.arange(length), (rows, 1))
    for placed in step.placements:
        starts[placed.row, placed.start : placed.start + placed.length] = placed.start
    first = starts[:, ::block] // block
    return (np.arange(length // block) - first + 1).sum(1)


def work_of(step: Step, config: ModelConfig, mesh: tuple[int, int], depth: int, chip: Chip) -> Work:
    """Return the work of a step in `depth` whole layers without sliding windows.

    Args:
        step: step of a plan.
        config: configuration of the model.
        mesh: numbers of devices that rows and heads are split over.
        depth: number of layers.
        chip: specifications of the chip.
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
    """Return the seconds of a layer's experts on one of `parts` devices.

    The result is the time for the products or for reading the weights, whichever is longer.
    """
    experts = config.experts
    if experts is None:
        return 0.0
    own = experts.num_experts / parts
    # The kernel multiplies a block that has rows of two experts by the weights of both.
    rows = slots * experts.num_experts_per_tok / parts + own * EXPERTS_BLOCK / 2
    values = 3 * config.hidden_size * experts.intermediate_size
    return max(2 * rows * values / chip.peak, 2 * own * values / chip.memory_speed)


def _sum_seconds(config: ModelConfig, slots: float, parts: int, chip: Chip) -> float:
    """Return the seconds to sum an update of the residual stream in a ring."""
    values = slots * config.hidden_size * 2 * (parts - 1) / parts
    return values * SUMMED_BYTES / chip.link_speed


def estimated_cycles(program: str) -> int:
    """Return the sum of the compiler's estimates in the text of a compiled program.

    The operations of a loop count once per iteration. The compiler gives no estimates for sorts,
    gathers and scatters, which move the tokens of experts.
    """
    return sum(cycles for _, cycles in operations(program))


def operations(program: str) -> Iterator[tuple[str, int]]:
    """Yield the line and the total cycles of each operation that the compiler estimates."""
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
    """Return the number of iterations of a loop: the bound of its counter, which begins at 0.

    The only loop without a constant bound, over blocks of the experts' tokens, runs once unless the
    router prefers the experts of a device.
    """
    found = [
        int(n) for line in condition for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", line)
    ]
    if len(found) > 1:
        raise ValueError(f"cannot determine how often a loop runs: {condition}")
    return found[0] if found else 1
