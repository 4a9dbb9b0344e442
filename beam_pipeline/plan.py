"""A prediction of what a run would read, compute, write and cost, before it is paid for. No JAX.

The tasks are read and tokenized as the job's workers do it, so samples, tokens, shards and bytes
are exact. Time and cost rest on an expected efficiency of the devices.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from activation_dataset.metadata import InputFile
from activation_dataset.prompts import Prompt
from beam_pipeline.accelerators import ACCELERATORS, PRICES_SOURCE, AcceleratorSettings
from beam_pipeline.config import Config
from beam_pipeline.job import Job
from corpus.task import RejectedTask
from qwen.batching import Packing, packing_for, plan_steps
from qwen.config import ModelConfig
from transforms.assign_shards import FINGERPRINT, ShardPlan, fingerprint, plan_shards
from transforms.measure_output import OutputSize, output_size
from transforms.read_tasks import common_root, match_files, read_file
from transforms.tokenize_tasks import prompts_of, variants_of


@dataclass(frozen=True)
class Work:
    """The work of the devices.

    Attributes:
      slots: token slots of all steps, padding included.
      flops: FLOPs of the tokens alone.
      padded_flops: FLOPs of all slots.
    """

    slots: int = 0
    flops: int = 0
    padded_flops: int = 0


@dataclass(frozen=True)
class Plan:
    """A run, predicted.

    Attributes:
      shards: the plan that the run would follow.
      longest: tokens of the longest prompt.
      sites: hook points of layers; each has its own files.
      size: bytes of the records.
      rejected: reason to number of rejected tasks.
      files, input_bytes: of the tasks.
      work: of the devices.
    """

    shards: ShardPlan
    longest: int
    sites: int
    size: OutputSize
    rejected: Mapping[str, int]
    files: int
    input_bytes: int
    work: Work


def make_plan(job: Job) -> Plan:
    """Read and tokenize all inputs, and predict; keeps 24 bytes of each sample."""
    rejected: Counter[str] = Counter()
    fingerprints = [np.empty(0, FINGERPRINT)]
    size = OutputSize()
    files = input_bytes = 0
    for item in _read_and_tokenize(job):
        if isinstance(item, RejectedTask):
            rejected[item.reason] += 1
        elif isinstance(item, InputFile):
            files += 1
            input_bytes += item.bytes
        else:
            fingerprints.append(fingerprint(item))
            size += output_size(item, job.record_kind)
    found = np.concatenate(fingerprints)
    lengths = np.sort(found, order=["rank", "content"])["tokens"].astype(np.int64)
    per_shard = job.config.samples_per_shard
    return Plan(
        shards=plan_shards(found, per_shard),
        longest=int(lengths.max(initial=0)),
        sites=len(job.config.extractor.sites),
        size=size,
        rejected=dict(sorted(rejected.items())),
        files=files,
        input_bytes=input_bytes,
        work=work_of(
            [lengths[start : start + per_shard] for start in range(0, len(lengths), per_shard)],
            job.source.config,
            max(job.config.extractor.layers) + 1,
            packing_of(job.config),
        ),
    )


def _read_and_tokenize(job: Job) -> Iterator[Prompt | RejectedTask | InputFile]:
    tokenizer, root = job.source.tokenizer(), common_root(job.patterns)
    for path in sorted({path for pattern in job.patterns for path in match_files(pattern)}):
        for item in read_file(path, path.removeprefix(root)):
            if isinstance(item, InputFile | RejectedTask):
                yield item
                continue
            for variant in variants_of(item, job.config.augmentation):
                yield from prompts_of(variant, job.template, tokenizer, job.limit)


def work_of(shards: list[np.ndarray], model: ModelConfig, depth: int, packing: Packing) -> Work:
    """Return the work of some shards.

    Args:
      shards: for each shard [samples] lengths in tokens, in the order of extraction.
      model: the shape of the model.
      depth: layers that run. The highest counts in full, though pooling "last" skips part of it.
      packing: how steps are packed.
    """
    tokens = slots = pairs = 0
    for lengths in shards:
        tokens += int(lengths.sum())
        pairs += int((lengths * (lengths + 1) // 2).sum())
        slots += sum(step.shape.slots for step in plan_steps(lengths.tolist(), packing))
    attention = model.attention_flops(pairs)
    return Work(
        slots=slots,
        flops=depth * (tokens * model.layer_flops_per_token + attention),
        padded_flops=depth * (slots * model.layer_flops_per_token + attention),
    )


def packing_of(config: Config) -> Packing:
    """Return how the extractor of a worker will pack its steps."""
    accelerator = ACCELERATORS[config.accelerator or "cpu"]
    settings = config.extractor
    rows = (settings.mesh_shape or (accelerator.devices,))[0]
    if accelerator.family == "tpu":
        return packing_for("splash", settings.batch_size, rows)
    if accelerator.family == "gpu" and settings.compute_dtype == "bfloat16":
        return packing_for("cudnn", settings.batch_size, rows)
    return packing_for("xla", settings.batch_size, rows)


def seconds_of(
    plan: Plan, config: Config, accelerator: AcceleratorSettings, workers: int, efficiency: float
) -> float | None:
    """Return the time until the last worker has finished; None if it cannot be predicted.

    Workers take whole shards, so with few shards some of them wait for the others.
    """
    if accelerator.peak_flops is None or not plan.shards.num_shards:
        return None
    devices = math.prod(config.extractor.mesh_shape or (accelerator.devices,))
    flops_of_a_shard = plan.work.padded_flops / plan.shards.num_shards
    rounds = math.ceil(plan.shards.num_shards / workers)
    return rounds * flops_of_a_shard / (accelerator.peak_flops * devices * efficiency)


def report(plan: Plan, config: Config, workers: int) -> str:
    """Describe a plan to a person.

    Args:
      plan: from `make_plan`.
      config: the flags of the run.
      workers: the number of workers that share the shards.
    """
    shards, work, size = plan.shards, plan.work, plan.size
    settings = config.extractor
    padding = 1 - shards.tokens / work.slots if work.slots else 0.0
    lines = [
        f"{settings.model_path}: {shards.samples:,} samples, {shards.tokens:,} tokens, "
        f"{plan.longest:,} in the longest",
        f"  inputs   {plan.files:,} files, {plan.input_bytes / 1e6:,.2f} MB",
        f"  rejected {sum(plan.rejected.values()):,}"
        + "".join(f"; {count} {reason}" for reason, count in plan.rejected.items()),
        f"  shards   {shards.num_shards:,} of at most {config.samples_per_shard:,} samples",
        f"  files    {shards.num_shards * (plan.sites + 1):,}: each shard has one for each of "
        f"{plan.sites} layers and hook points, and one of prompts",
        f"  bytes    {size.layer:,} of each layer and hook point, {size.prompts:,} of prompts, "
        f"{size.total(plan.sites):,} in all",
        f"  FLOPs    {work.flops:.3g}, {work.padded_flops:.3g} with padding ({padding:.1%} of the "
        "slots)",
    ]
    if not config.accelerator:
        return "\n".join([*lines, "  time     not predicted: no --accelerator is given"])
    accelerator = ACCELERATORS[config.accelerator]
    efficiency = config.efficiency or accelerator.efficiency
    seconds = seconds_of(plan, config, accelerator, workers, efficiency)
    if seconds is None:
        why = "there are no samples, or the peak of this accelerator is not known"
        return "\n".join([*lines, f"  time     not predicted: {why}"])
    hours = seconds * workers * accelerator.devices / 3600
    price = accelerator.list_price if config.device_price is None else config.device_price
    cost = f"{hours * price:,.2f}" if hours * price >= 0.01 else "under 0.01"
    lines += [
        f"  time     {duration(seconds)} on {workers} x {accelerator.name}, at {efficiency:.0%} of "
        "the peak",
        f"  cost     {cost}: {hours:,.3g} device hours at {price:,.2f}",
        f"  writing  {size.total(plan.sites) / seconds / workers / 1e6:,.3g} MB/s per worker; if "
        "the storage is slower, the run takes longer",
        "Time and cost are those of the devices' work alone, without starting workers and compiling.",
    ]
    if config.device_price is None:
        lines.append(PRICES_SOURCE)
    if workers > shards.num_shards:
        lines.append(
            f"Only {shards.num_shards} of {workers} workers get a shard: lower --samples_per_shard "
            "or --num_workers."
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Format a time in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:,.1f} h"
