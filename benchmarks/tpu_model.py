"""How long a TPU takes, from what its compiler says: a model of time, without a TPU.

A step takes as long as the cycles that the compiler estimates for each operation of its programs,
plus those of the attention kernel, of which it estimates nothing: they are counted from the
instructions that it schedules for the kernel. Nothing overlaps but what the compiler overlaps
itself, the host keeps up, and nothing is read or written.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from qwen.batching import Step
from qwen.config import ModelConfig
from qwen.ops.splash import SPLASH_BLOCK


@dataclass(frozen=True)
class KernelCycles:
    """Instructions of the attention kernel for blocks of ``SPLASH_BLOCK`` and 64 head dimensions.

    Counted in the compiler's final schedule of it, one cycle each.

    Attributes:
      pair: of a query block with a key block that it sees, for one head.
      query_block: to begin a query block and to write its result.
      visit: of every pair of blocks of a row, seen or not, for the loop and the copies.
    """

    pair: int
    query_block: int
    visit: int


@dataclass(frozen=True)
class Chip:
    """What one chip can do.

    Attributes:
      topology, bounds: its name and host bounds for the compiler.
      peak: bfloat16 FLOP/s.
      clock: Hz, of the matrix units and of what the compiler counts. For its large products the
        compiler estimates 98 % of ``peak / clock`` FLOPs a cycle, so both mean the same cycle.
    """

    topology: str
    bounds: tuple[int, int, int] | None
    peak: float
    clock: float
    kernel: KernelCycles


V5E, V6E = KernelCycles(1180, 630, 170), KernelCycles(950, 260, 90)

CHIPS = {
    "v5e 1x1": Chip("v5e:1x1", (1, 1, 1), 197e12, 1.5e9, V5E),
    "v5e 2x4": Chip("v5e:2x4", None, 197e12, 1.5e9, V5E),
    "v6e 1x1": Chip("v6e:1x1", (1, 1, 1), 918e12, 1.75e9, V6E),
}


@dataclass(frozen=True)
class Work:
    """What a step asks of the busiest of its devices, all layers together.

    Attributes:
      tokens, slots: of all devices.
      useful_flops: of real tokens' products and of attention within their samples, per device.
      executed_flops: of all slots' products and of the blocks that the kernel sees.
      kernel_flops, kernel_cycles: the kernel's part.
    """

    tokens: int
    slots: int
    useful_flops: float
    executed_flops: float
    kernel_flops: float
    kernel_cycles: float


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


def work_of(
    step: Step, config: ModelConfig, devices: int, depth: int, kernel: KernelCycles
) -> Work:
    """The work of ``depth`` whole layers, rows split over ``devices``."""
    block = math.gcd(step.shape.length, SPLASH_BLOCK)
    blocks = step.shape.length // block
    rows = step.shape.rows // devices
    seen = int(seen_blocks(step).reshape(devices, rows).sum(1).max())
    share = block / SPLASH_BLOCK
    cycles = (
        seen * kernel.pair * share**2
        + rows * blocks * kernel.query_block * share
        + rows * blocks**2 * kernel.visit
    )
    pairs = sum(p.length * (p.length + 1) // 2 for p in step.placements)
    slots, tokens = step.shape.slots / devices, step.tokens / devices
    kernel_flops = depth * config.attention_flops(seen * block**2)
    return Work(
        tokens=step.tokens,
        slots=step.shape.slots,
        useful_flops=depth
        * (tokens * config.layer_flops_per_token + config.attention_flops(pairs) / devices),
        executed_flops=depth * slots * config.layer_flops_per_token + kernel_flops,
        kernel_flops=kernel_flops,
        kernel_cycles=depth * config.num_attention_heads * cycles,
    )


def estimated_cycles(program: str) -> int:
    """The sum of the compiler's estimates for the operations of a compiled program's text."""
    return sum(int(cycles) for cycles in re.findall(r'"estimated_cycles":"(\d+)"', program))
