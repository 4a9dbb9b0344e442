"""What the TPU compiler says of this project's programs, on a machine that has no TPU.

Plans the steps of ARC-AGI-1's training prompts as a worker would, compiles every shape of the plan
for real chips, adds up what a chip's memory has to hold, and predicts the time of a large run.

The plan's prompts stand for all samples. ``benchmarks.tpu_model`` holds the model of time.

    make tpu-check
    python -m benchmarks.tpu_check --chips "v5e 1x1" --poolings last --json tpu.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies

from activation_dataset.format import POOLINGS, Pooling
from benchmarks.prompts import arc_prompts
from benchmarks.tpu_model import CHIPS, Chip, estimated_cycles, work_of
from qwen.batching import StepShape, packing_for, plan_steps
from qwen.extractor import STEPS_IN_FLIGHT
from qwen.mesh import make_mesh
from qwen.ops.splash import SplashOps
from qwen.parameters import abstract_model
from qwen.presets import PRESETS
from qwen.programs import Programs

LAYERS = tuple(range(10, 24))
BATCH_SIZE = 8
SAMPLES, CHIPS_OF_A_RUN = 50_000, 64
REPLACED_MINUTES = (50, 100)
MOST_MEMORY = 14e9
MOST_SECONDS = 60
LEAST_SHARE_OF_PEAK = 0.5

WITHOUT_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What lets libtpu compile on a machine without a TPU."""


@dataclass(frozen=True)
class Program:
    """What the compiler says of one program on one device; sizes in bytes."""

    cycles: int
    flops: float
    bytes_accessed: float
    arguments: int
    outputs: int
    aliased: int
    temporary: int
    code: int


def program_of(compiled: Any) -> Program:
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return Program(
        cycles=estimated_cycles(compiled.as_text()),
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
    )


@dataclass(frozen=True)
class CompiledShape:
    """The programs of one step shape: one embed, `depth - 1` layers, one top, and moments."""

    shape: StepShape
    seconds_to_lower: float
    seconds_to_compile: float
    programs: Mapping[str, Program]

    def total(self, quantity: str, depth: int) -> float:
        """A quantity of all programs of a step together."""
        calls = {"embed": 1, "layer": depth - 1, "top": 1, "moments": len(LAYERS)}
        return sum(getattr(self.programs[name], quantity) * n for name, n in calls.items())

    def memory(self, resident: int, embedding: int, depth: int) -> int:
        """Most bytes of a device's memory, with all that may be enqueued held at the same time.

        That is: weights and code, the largest program's temporaries, and for each step in flight
        its inputs, its residual stream and what is captured of every layer.
        """
        embed, layer, top = (self.programs[name] for name in ("embed", "layer", "top"))
        in_flight = (
            embed.arguments
            - embedding
            + embed.outputs
            + (depth - 1) * (layer.outputs - layer.aliased)
            + top.outputs
            + len(LAYERS) * self.programs["moments"].outputs
        )
        temporary = max(p.temporary for p in self.programs.values())
        return resident + STEPS_IN_FLIGHT * in_flight + temporary

    @property
    def code(self) -> int:
        return sum(p.code for p in self.programs.values())


def compile_shapes(programs: Programs, shapes: Iterable[StepShape]) -> list[CompiledShape]:
    found = []
    for shape in shapes:
        started = time.perf_counter()
        lowered = programs.lower(shape)
        to_lower = time.perf_counter() - started
        compiled = {name: program.compile() for name, program in lowered.items()}
        to_compile = time.perf_counter() - started - to_lower
        parts = {name: program_of(program) for name, program in compiled.items()}
        found.append(CompiledShape(shape, to_lower, to_compile, parts))
        print(
            f"    {shape.rows:3} x {shape.length:<6} lowered in {to_lower:4.1f} s, compiled in "
            f"{to_compile:5.1f} s",
            flush=True,
        )
    return found


@dataclass(frozen=True)
class Report:
    """One chip and pooling. Per device where nothing else is said; ``seconds`` is the whole run."""

    chip: str
    pooling: str
    shapes: int
    memory: int
    slots_per_token: float
    useful_over_executed: float
    seconds: float
    seconds_in_kernel: float
    roofline_seconds: float
    share_of_peak: float
    flops: float
    bytes_accessed: float
    programs: Sequence[Mapping[str, Any]] = field(repr=False)

    def lines(self) -> list[str]:
        fits = "met" if self.memory <= MOST_MEMORY else "NOT MET"
        soon = "met" if self.seconds <= MOST_SECONDS else "NOT MET"
        dense = "met" if self.share_of_peak >= LEAST_SHARE_OF_PEAK else "NOT MET"
        before = " to ".join(map(str, REPLACED_MINUTES))
        return [
            f"  {self.shapes} shapes, {self.slots_per_token:.3f} slots per token, "
            f"{self.useful_over_executed:.3f} of the executed FLOPs are useful",
            f"  memory {self.memory / 1e9:.2f} GB (at most {MOST_MEMORY / 1e9:.0f}: {fits})",
            f"  {SAMPLES} samples: {self.flops * 1e-15:.1f} PFLOP and "
            f"{self.bytes_accessed * 1e-12:.1f} TB accessed on each of {CHIPS_OF_A_RUN} chips",
            f"  predicted {self.seconds:.1f} s (at most {MOST_SECONDS}: {soon}), of these "
            f"{self.seconds_in_kernel:.1f} s in the attention kernel; roofline "
            f"{self.roofline_seconds:.1f} s; the replaced system: {before} minutes",
            f"  {self.share_of_peak:.0%} of the peak (at least {LEAST_SHARE_OF_PEAK:.0%}: {dense})",
        ]


def devices_of(chip: Chip) -> Sequence[jax.Device]:
    """The devices of one host, for the compiler alone."""
    options = {} if chip.bounds is None else {"chips_per_host_bounds": chip.bounds}
    return topologies.get_topology_desc(chip.topology, "tpu", **options).devices


def check(name: str, pooling: Pooling, lengths: Sequence[int], batch_size: int) -> Report:
    """Compiles the plan of these lengths for a chip, and predicts from it."""
    chip, config, dtype = CHIPS[name], PRESETS["Qwen2.5-0.5B"], jnp.dtype(jnp.bfloat16)
    mesh = make_mesh(None, devices_of(chip))
    devices, depth = mesh.size, LAYERS[-1] + 1
    ops = SplashOps()
    model = abstract_model(config, depth, dtype, mesh, ops)
    steps = plan_steps(lengths, packing_for(ops.name, batch_size, devices))
    compiled = compile_shapes(
        Programs(model, config, mesh, ops, LAYERS, ["resid_post"], pooling, dtype),
        dict.fromkeys(step.shape for step in steps),
    )
    # With pooling last the top layer is computed at a few slots only: XLA's estimate holds it.
    whole_layers = depth - 1 if pooling == "last" else depth
    work = [work_of(step, config, devices, whole_layers, chip.kernel) for step in steps]
    by_shape = {entry.shape: entry for entry in compiled}

    def of_plan(quantity: str) -> float:
        return sum(by_shape[step.shape].total(quantity, depth) for step in steps)

    kernel = sum(w.kernel_flops for w in work)
    useful = sum(w.useful_flops for w in work)
    in_kernel = sum(w.kernel_cycles for w in work) / chip.clock
    seconds = of_plan("cycles") / chip.clock + in_kernel
    runs = SAMPLES / len(lengths) * devices / CHIPS_OF_A_RUN
    embedding = config.vocab_size * config.hidden_size * dtype.itemsize
    resident = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * dtype.itemsize
        for leaf in jax.tree.leaves(nnx.state(model))
    )
    return Report(
        chip=name,
        pooling=pooling,
        shapes=len(compiled),
        memory=max(e.memory(resident, embedding, depth) for e in compiled)
        + sum(e.code for e in compiled),
        slots_per_token=sum(w.slots for w in work) / sum(w.tokens for w in work),
        useful_over_executed=useful / sum(w.executed_flops for w in work),
        seconds=seconds * runs,
        seconds_in_kernel=in_kernel * runs,
        roofline_seconds=useful / chip.peak * runs,
        share_of_peak=useful / chip.peak / seconds,
        flops=(of_plan("flops") + kernel) * runs,
        bytes_accessed=of_plan("bytes_accessed") * runs,
        programs=[
            {
                "rows": e.shape.rows,
                "length": e.shape.length,
                "lower": e.seconds_to_lower,
                "compile": e.seconds_to_compile,
            }
            | {part: asdict(program) for part, program in e.programs.items()}
            for e in compiled
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chips", nargs="+", choices=tuple(CHIPS), default=list(CHIPS))
    parser.add_argument("--poolings", nargs="+", choices=POOLINGS, default=["last", "none"])
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if find_spec("libtpu") is None:
        print("tpu-check: skipped, libtpu (the TPU compiler) is not installed: make tpu-check")
        return
    os.environ.update(WITHOUT_TPU)
    lengths = [len(ids) for ids in arc_prompts()]
    print(f"{len(lengths)} prompts, {sum(lengths)} tokens")
    reports = []
    for name in arguments.chips:
        for pooling in arguments.poolings:
            print(f"{name}, pooling {pooling}", flush=True)
            reports.append(check(name, pooling, lengths, arguments.batch_size))
            print("\n".join(reports[-1].lines()), flush=True)
            if arguments.json:
                found = [asdict(report) for report in reports]
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if any(report.memory > MOST_MEMORY for report in reports):
        raise SystemExit("tpu-check: a plan does not fit into the memory of its chip")


if __name__ == "__main__":
    main()
