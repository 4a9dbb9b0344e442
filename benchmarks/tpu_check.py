"""Memory and predicted speed on TPUs, from the TPU compiler on a machine without a TPU.

Plans the steps of a case's prompts like a worker, compiles every shape of the plan for real chips,
adds up the memory of a chip, and predicts the speed with `benchmarks.tpu_model`. The top layer
counts as a whole layer, regardless of the pooling.

    make tpu-check
    python -m benchmarks.tpu_check --models Qwen3.5-2B --chips "v5e 1x1" --json tpu.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies

from activation_dataset.format import Pooling
from benchmarks.prompts import arc_prompts
from benchmarks.tpu_model import CHIPS, Chip, estimated_cycles, work_of
from qwen.batching import StepShape, packing_for, plan_steps, with_chosen
from qwen.config import LayerKind
from qwen.extractor import STEPS_IN_FLIGHT
from qwen.mesh import DATA_AXIS, check_mesh_fits_model, make_mesh
from qwen.ops.splash import SplashOps
from qwen.parameters import abstract_model
from qwen.presets import PRESETS
from qwen.programs import Programs

SMALLEST = "Qwen2.5-0.5B"
MODEL_PARTS = {
    SMALLEST: (1, 1),
    "Qwen3-1.7B": (1, 1),
    "Qwen3.5-2B": (1, 1),
    "Qwen3-8B": (2, 1),
    "Qwen3.5-9B": (2, 1),
    "Qwen3.5-27B": (8, 4),
    "Qwen3-30B-A3B": (8, 4),
    "Qwen3.5-35B-A3B": (8, 4),
}
"""Models, smallest first, with the minimum number of chips of 16 and of 32 GB for each."""

ONE_CHIP = (SMALLEST, "Qwen3-1.7B", "Qwen3.5-2B")
"""Models that fit one chip of 16 GB."""

BATCH_SIZE = 8
DOCUMENTS, TOKENS_OF_A_DOCUMENT = 512, 1024
FREE = 0.95
"""Share of a chip's memory that is available to a program."""

WITHOUT_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Environment in which libtpu compiles on a machine without a TPU."""


@dataclass(frozen=True)
class Case:
    """A model on a kind of chip, with prompt lengths and captured layers."""

    model: str
    chip: str
    lengths: Sequence[int]
    layers: Sequence[int]
    pooling: Pooling

    @property
    def mesh(self) -> tuple[int, int]:
        """Shape of the mesh; the first axis splits rows, the second axis splits the model."""
        if self.chip.endswith("1x1"):
            return 1, 1
        parts = MODEL_PARTS[self.model][self.chip.startswith("v6e")]
        return 8 // parts, parts


def case_of(model: str, chip: str) -> Case:
    """Return the case of a model on a kind of chip.

    The smallest model runs ARC-AGI-1's training prompts. All other models run a shard of documents
    and capture every token of four layers.
    """
    depth = PRESETS[model].num_hidden_layers
    if model == SMALLEST:
        lengths = [len(ids) for ids in arc_prompts()]
        return Case(model, chip, lengths, range(10, depth), "last")
    layers = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    return Case(model, chip, [TOKENS_OF_A_DOCUMENT] * DOCUMENTS, layers, "none")


@dataclass(frozen=True)
class Program:
    """The compiler's figures for one program on one device; sizes in bytes."""

    cycles: int
    flops: float
    arguments: int
    outputs: int
    aliased: int
    temporary: int
    code: int


def program_of(lowered: Any) -> Program:
    """Compile a lowered program and return the compiler's figures."""
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return Program(
        cycles=estimated_cycles(compiled.as_text()),
        flops=compiled.cost_analysis()["flops"],
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
    )


@dataclass(frozen=True)
class CompiledShape:
    """Programs of one step shape: embedding, a layer of each kind, and moments.

    Attributes:
        shape: shape of the steps.
        seconds: time to lower the programs.
        embed: program of the embedding.
        layers: program of a layer, by kind.
        moments: program of the statistics of a captured layer.
    """

    shape: StepShape
    seconds: float
    embed: Program
    layers: Mapping[LayerKind, Program]
    moments: Program

    def cycles(self, kinds: Counter[LayerKind], captured: int) -> int:
        """Return the cycles of a step."""
        in_layers = sum(self.layers[kind].cycles * count for kind, count in kinds.items())
        return self.embed.cycles + in_layers + self.moments.cycles * captured

    def memory(self, resident: int, embedding: int, captured: int) -> int:
        """Return the peak memory of a device in bytes, with the maximum number of steps in flight.

        The sum includes the weights, the temporaries of the largest program and, for each step in
        flight, its inputs, its residual stream and the captured values of every layer.
        """
        layers = self.layers.values()
        in_flight = (
            self.embed.arguments
            - embedding
            + self.embed.outputs
            + captured * max(layer.outputs - layer.aliased for layer in layers)
            + captured * self.moments.outputs
        )
        temporary = max(p.temporary for p in (self.embed, self.moments, *layers))
        return resident + STEPS_IN_FLIGHT * in_flight + temporary

    @property
    def code(self) -> int:
        """Bytes of code of all programs."""
        return sum(p.code for p in (self.embed, self.moments, *self.layers.values()))


def compile_shapes(programs: Programs, shapes: Iterable[StepShape]) -> list[CompiledShape]:
    """Compile the programs of each shape and print the time."""
    found = []
    for shape in shapes:
        started = time.perf_counter()
        lowered = programs.lower(shape)
        found.append(
            CompiledShape(
                shape,
                time.perf_counter() - started,
                program_of(lowered.embed),
                {kind: program_of(layer) for kind, layer in lowered.layers.items()},
                program_of(*lowered.moments.values()),
            )
        )
        seconds = time.perf_counter() - started
        print(f"    {shape.rows:3} x {shape.length:<6} compiled in {seconds:5.1f} s", flush=True)
    return found


@dataclass(frozen=True)
class Report:
    """Results of one model on one kind of chip; memory in bytes and speeds are per chip."""

    model: str
    chip: str
    mesh: tuple[int, int]
    parameters: int
    shapes: int
    memory: int
    fits: bool
    useful_over_executed: float
    seconds: float
    tokens_per_second: float
    share_of_peak: float
    shares_of_time: Mapping[str, float]
    programs: Sequence[Mapping[str, Any]] = field(repr=False)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares_of_time.items())
        return [
            f"  mesh {self.mesh}, {self.parameters / 1e9:.1f} G parameters, {self.shapes} shapes, "
            f"{self.useful_over_executed:.3f} of the executed FLOPs are useful",
            f"  memory {self.memory / 1e9:.1f} GB" + ("" if self.fits else ": DOES NOT FIT"),
            f"  predicted: {self.seconds:.1f} s, {self.tokens_per_second:,.0f} tokens/s per chip, "
            f"{self.share_of_peak:.0%} of the peak",
            f"  predicted time: {shares}",
        ]


def devices_of(chip: Chip) -> Sequence[jax.Device]:
    """Return the devices of one host, which only the compiler uses."""
    options = {} if chip.bounds is None else {"chips_per_host_bounds": chip.bounds}
    return topologies.get_topology_desc(chip.topology, "tpu", **options).devices


def check(case: Case) -> Report:
    """Compile the plan of a case and predict its speed."""
    chip, config, dtype = CHIPS[case.chip], PRESETS[case.model], jnp.dtype(jnp.bfloat16)
    mesh = make_mesh(case.mesh, devices_of(chip))
    check_mesh_fits_model(mesh, config)
    depth, ops, captured = max(case.layers) + 1, SplashOps(), len(case.layers)
    model = abstract_model(config, depth, dtype, mesh, ops)
    steps = plan_steps(case.lengths, packing_for(ops.name, BATCH_SIZE, mesh.shape[DATA_AXIS]))
    if case.pooling == "last":
        steps = with_chosen(steps, [1] * len(case.lengths))
    compiled = compile_shapes(
        Programs(model, config, mesh, ops, case.layers, ["resid_post"], case.pooling, "bfloat16"),
        dict.fromkeys(step.shape for step in steps),
    )
    by_shape = {entry.shape: entry for entry in compiled}
    kinds = Counter(config.kind(layer) for layer in range(depth))
    work = [work_of(step, config, case.mesh, depth, chip) for step in steps]
    estimated = sum(by_shape[step.shape].cycles(kinds, captured) for step in steps)
    parts = {
        "estimated by the compiler": estimated,
        "attention kernel": sum(w.kernel_cycles for w in work),
        "kernel of the experts": sum(w.experts_cycles for w in work),
        "sums over chips": sum(w.sum_cycles for w in work),
    }
    seconds = sum(parts.values()) / chip.clock
    useful = sum(w.useful_flops for w in work)
    state = jax.tree.leaves(nnx.state(model))
    resident = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in state
    )
    whole = model.embedding.get_value()
    embedding = math.prod(whole.sharding.shard_shape(whole.shape)) * dtype.itemsize
    memory = max(e.memory(resident, embedding, captured) for e in compiled)
    memory += sum(e.code for e in compiled)
    return Report(
        model=case.model,
        chip=case.chip,
        mesh=case.mesh,
        parameters=sum(math.prod(leaf.shape) for leaf in state),
        shapes=len(compiled),
        memory=memory,
        fits=memory <= FREE * chip.memory,
        useful_over_executed=useful / sum(w.executed_flops for w in work),
        seconds=seconds,
        tokens_per_second=sum(case.lengths) / seconds / mesh.size,
        share_of_peak=useful / chip.peak / seconds,
        shares_of_time={name: part / sum(parts.values()) for name, part in parts.items() if part},
        programs=[
            {"rows": e.shape.rows, "length": e.shape.length, "embed": asdict(e.embed)}
            | {f"{k.mixer}{' experts' * k.experts}": asdict(p) for k, p in e.layers.items()}
            for e in compiled
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--models", nargs="+", choices=tuple(MODEL_PARTS), default=list(MODEL_PARTS)
    )
    parser.add_argument("--chips", nargs="+", choices=tuple(CHIPS), default=list(CHIPS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if find_spec("libtpu") is None:
        print("tpu-check: skipped: libtpu (the TPU compiler) is not installed; run make tpu-check")
        return
    os.environ.update(WITHOUT_TPU)
    reports = []
    for model in arguments.models:
        for chip in arguments.chips:
            if chip.endswith("1x1") and model not in ONE_CHIP:
                continue
            print(f"{model} on {chip}", flush=True)
            reports.append(check(case_of(model, chip)))
            print("\n".join(reports[-1].lines()), flush=True)
            if arguments.json:
                found = [asdict(report) for report in reports]
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if not all(report.fits for report in reports):
        raise SystemExit("tpu-check: a plan above does not fit into the memory of its chip")


if __name__ == "__main__":
    main()
