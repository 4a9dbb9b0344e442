"""A prediction of what a run would read, compute, write and cost, without JAX.

Samples, tokens, shards and bytes are exact. Time and cost rest on an expected efficiency.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from activation_dataset.input_counts import InputCounts, Written
from activation_dataset.metadata import InputFile
from activation_dataset.prompts import Prompt
from activation_dataset.reporting.summary import counted
from beam_pipeline.accelerators import ACCELERATORS, AcceleratorSettings
from beam_pipeline.config import Config
from beam_pipeline.job import Job
from corpus.task import Notice, RejectedTask
from qwen.batching import Packing, packing_for, plan_steps
from qwen.flops import flops_of
from transforms.assign_shards import FINGERPRINT, ShardPlan, fingerprint, plan_shards
from transforms.find_inputs import common_root, match_all, source_of
from transforms.measure_output import OutputSize, output_size
from transforms.read_tasks import read_file
from transforms.tokenize_tasks import samples_of
from transforms.write_rejected import count_inputs


@dataclass(frozen=True)
class Plan:
    """A run, predicted.

    Attributes:
      longest: tokens of the longest prompt.
      size: bytes of the records.
      counts, rejected: what is read and rejected.
      slots: token slots of all device steps, padding included.
      flops, padded_flops: FLOPs of the tokens alone, and of all slots.
      skipped: files and folders of the inputs that would not be read.
    """

    shards: ShardPlan
    longest: int
    size: OutputSize
    counts: InputCounts
    rejected: Sequence[RejectedTask]
    inputs: Sequence[InputFile]
    slots: int
    flops: int
    padded_flops: int
    skipped: Sequence[str] = ()


def make_plan(job: Job) -> Plan:
    """Read and tokenize all inputs, and predict; keeps 24 bytes of each sample."""
    written, rejected = Written(), list[RejectedTask]()
    fingerprints = [np.empty(0, FINGERPRINT)]
    size, kinds = OutputSize(), Counter(job.record_kinds.values())
    inputs: list[InputFile] = []
    root, matches = common_root(job.patterns), match_all(job.patterns)
    for item in _read_and_tokenize(job, matches.files, root):
        if isinstance(item, RejectedTask):
            rejected.append(item)
        elif isinstance(item, Written):
            written += item
        elif isinstance(item, InputFile):
            inputs.append(item)
        else:
            fingerprints.append(fingerprint(item))
            size += output_size(item, kinds)
    found = np.concatenate(fingerprints)
    shards = plan_shards(found, job.config.samples_per_shard)
    lengths = np.sort(found, order=["rank", "content"])["tokens"].astype(np.int64)
    by_shard = np.split(lengths, range(0, len(lengths), job.config.samples_per_shard)[1:])
    slots = slots_of(by_shard, packing_of(job.config))
    # The highest layer counts in full, though pooling "last" skips part of it.
    depth = max(job.config.extractor.layers) + 1
    flops, padded_flops = (
        flops_of(job.source.config, depth, tokens, lengths) for tokens in (shards.tokens, slots)
    )
    return Plan(
        shards,
        int(lengths.max(initial=0)),
        size,
        count_inputs(written, rejected),
        rejected,
        inputs,
        slots,
        flops,
        padded_flops,
        [source_of(path, root) for path in matches.skipped],
    )


def _read_and_tokenize(
    job: Job, paths: Sequence[str], root: str
) -> Iterator[Prompt | RejectedTask | Written | InputFile]:
    tokenizer = job.source.tokenizer_if_any()
    for path in paths:
        for item in read_file(path, source_of(path, root), job.config.text_field):
            if isinstance(item, Notice):
                continue
            if isinstance(item, InputFile | RejectedTask):
                yield item
                continue
            augmentation = job.config.augmentation
            yield from samples_of(item, augmentation, job.template, tokenizer, job.rules)


def slots_of(shards: Sequence[np.ndarray], packing: Packing) -> int:
    """Return the token slots of all steps of shards, each [samples] lengths in file order."""
    steps = (step for lengths in shards for step in plan_steps(lengths.tolist(), packing))
    return sum(step.shape.slots for step in steps)


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
    flops_of_a_shard = plan.padded_flops / plan.shards.num_shards
    rounds = math.ceil(plan.shards.num_shards / workers)
    return rounds * flops_of_a_shard / (accelerator.peak_flops * devices * efficiency)


def report(plan: Plan, config: Config, workers: int) -> str:
    """Describe to a person a plan whose shards some workers share."""
    shards, size, sites = plan.shards, plan.size, len(config.extractor.sites)
    padding = 1 - shards.tokens / plan.slots if plan.slots else 0.0
    lines = [
        f"{config.extractor.model_path}: {shards.samples:,} samples, {shards.tokens:,} tokens, "
        f"{plan.longest:,} in the longest",
        f"  inputs   {len(plan.inputs):,} files, "
        f"{sum(file.bytes for file in plan.inputs) / 1e6:,.2f} MB"
        + (f"; {len(plan.skipped):,} skipped: {', '.join(plan.skipped[:3])}" * bool(plan.skipped)),
        *(f"  {name:<8} {value}; {note}" for name, value, note in counted(plan.counts)),
        f"  shards   {shards.num_shards:,} of at most {config.samples_per_shard:,} samples",
        f"  files    {shards.num_shards * (sites + 1):,}: each shard has one for each of "
        f"{sites} layers and hook points, and one of prompts",
        f"  bytes    {size.layers:,} of the layers, {size.prompts:,} of prompts, "
        f"{size.total:,} in all",
        f"  FLOPs    {plan.flops:.3g}, {plan.padded_flops:.3g} with padding ({padding:.1%} of the "
        "slots)",
    ]
    accelerator = ACCELERATORS[config.accelerator or "cpu"]
    efficiency = config.efficiency or accelerator.efficiency
    seconds = seconds_of(plan, config, accelerator, workers, efficiency)
    if seconds is None:
        why = "there is no sample" if accelerator.peak_flops else "give an --accelerator, not cpu"
        return "\n".join([*lines, f"  time     not predicted: {why}"])
    hours = seconds * workers * accelerator.devices / 3600
    price, source = accelerator.list_price, ", the list price in USD of November 2026"
    if config.device_price is not None:
        price, source = config.device_price, ""
    cost = f"{hours * price:,.2f}" if hours * price >= 0.01 else "under 0.01"
    lines += [
        f"  time     {timedelta(seconds=math.ceil(seconds))} on {workers} x {accelerator.name}, at "
        f"{efficiency:.0%} of the peak",
        f"  cost     {cost}: {hours:,.3g} device hours at {price:,.2f}{source}",
        f"  writing  {size.total / seconds / workers / 1e6:,.3g} MB/s per worker; if "
        "the storage is slower, the run takes longer",
        "Time and cost are those of the devices alone, without starting workers and compiling.",
    ]
    if workers > shards.num_shards:
        lines.append(
            f"Only {shards.num_shards} of {workers} workers get a shard: lower --samples_per_shard "
            "or --num_workers."
        )
    return "\n".join(lines)
