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
from activation_dataset.reporting.summary import count_of, counted
from beam_pipeline.accelerators import ACCELERATORS, AcceleratorSettings
from beam_pipeline.config import Config
from beam_pipeline.job import Job
from beam_pipeline.schedule import Schedule
from beam_pipeline.storage_limit import StorageLimit
from corpus.task import Notice, RejectedTask
from qwen.batching import Packing, packing_for, plan_steps
from qwen.flops import flops_of
from transforms.assign_shards import FINGERPRINT, ShardPlan, fingerprint, plan_shards
from transforms.auto_shards import AutoShards
from transforms.find_inputs import common_root, match_all, source_of
from transforms.measure_output import OutputSize, output_size
from transforms.read_tasks import read_file
from transforms.report_inputs import GatherReport
from transforms.tokenize_tasks import samples_of

LONG_TAIL = 0.05
"""Fraction of the workers' time that may be idle at the end before the report gives advice."""


@dataclass(frozen=True)
class Plan:
    """Prediction of a run.

    Attributes:
        samples_per_shard: the number of the samples of a shard, or the rule that chose it.
        shard_samples, shard_slots: [shards] int64, samples of each shard, and token slots of all
            its device steps, padding included.
        longest: tokens of the longest prompt.
        size: bytes of the records.
        counts, rejected: counts of the inputs, and the rejections.
        flops, padded_flops: FLOPs of the tokens alone, and of all slots.
        skipped: files and folders of the inputs that would not be read.
    """

    shards: ShardPlan
    samples_per_shard: int | AutoShards
    shard_samples: np.ndarray
    shard_slots: np.ndarray
    longest: int
    size: OutputSize
    counts: InputCounts
    rejected: Sequence[RejectedTask]
    inputs: Sequence[InputFile]
    flops: int
    padded_flops: int
    skipped: Sequence[str] = ()

    @property
    def slots(self) -> int:
        """Token slots of all device steps, padding included."""
        return int(self.shard_slots.sum())


def make_plan(job: Job) -> Plan:
    """Read and tokenize all inputs, and predict the run. Memory holds 24 bytes per sample."""
    gather = GatherReport()
    reported = gather.create_accumulator()
    fingerprints = [np.empty(0, FINGERPRINT)]
    size, kinds = OutputSize(), Counter(job.record_kinds.values())
    samples_per_shard = job.samples_per_shard
    root, matches = common_root(job.patterns), match_all(job.patterns)
    for item in _read_and_tokenize(job, matches.files, root):
        if isinstance(item, Prompt):
            fingerprints.append(fingerprint(item, samples_per_shard))
            size += output_size(item, kinds)
        else:
            reported = gather.add_input(reported, item)
    inputs = gather.extract_output(reported)
    found = np.concatenate(fingerprints)
    shards = plan_shards(found, samples_per_shard)
    ordered = np.sort(found, order=["rank", "content"])
    lengths = ordered["tokens"].astype(np.int64)
    starts = np.searchsorted(ordered["rank"], shards.first_ranks)
    by_shard = np.split(lengths, starts[1:])[: shards.num_shards]
    packing = packing_of(job.config)
    slots = np.array([slots_of(each, packing) for each in by_shard], np.int64)
    # The highest layer counts in full, though pooling "last" skips part of it.
    depth = max(job.config.extractor.layers) + 1
    flops, padded_flops = (
        flops_of(job.source.config, depth, tokens, lengths)
        for tokens in (shards.tokens, int(slots.sum()))
    )
    return Plan(
        shards,
        samples_per_shard,
        np.array([len(each) for each in by_shard], np.int64),
        slots,
        int(lengths.max(initial=0)),
        size,
        inputs.counts,
        inputs.rejected,
        inputs.files,
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


def slots_of(lengths: np.ndarray, packing: Packing) -> int:
    """Return the token slots of all steps of a shard, of its [samples] lengths in file order."""
    return sum(step.shape.slots for step in plan_steps(lengths.tolist(), packing))


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


def model_seconds(
    plan: Plan, config: Config, accelerator: AcceleratorSettings, efficiency: float
) -> float | None:
    """Return the time of one worker for all shards; None if it cannot be predicted."""
    if accelerator.peak_flops is None or not plan.shards.num_shards:
        return None
    devices = math.prod(config.extractor.mesh_shape or (accelerator.devices,))
    return plan.padded_flops / (accelerator.peak_flops * devices * efficiency)


def report(plan: Plan, config: Config, workers: int) -> str:
    """Return the report on a plan for a number of workers that share its shards."""
    shards, size, sites = plan.shards, plan.size, len(config.extractor.sites)
    padding = 1 - shards.tokens / plan.slots if plan.slots else 0.0
    schedule = Schedule.of(plan.shard_slots.tolist(), workers)
    lines = [
        f"{config.extractor.model_path}: {count_of(shards.samples, 'sample')}, "
        f"{count_of(shards.tokens, 'token')}, {plan.longest:,} in the longest",
        f"  inputs   {count_of(len(plan.inputs), 'file')}, "
        f"{sum(file.bytes for file in plan.inputs) / 1e6:,.2f} MB"
        + (f"; {len(plan.skipped):,} skipped: {', '.join(plan.skipped[:3])}" * bool(plan.skipped)),
        *(f"  {name:<8} {value}; {note}" for name, value, note in counted(plan.counts)),
        f"  shards   {shards.num_shards:,} of {_samples_named(plan)}",
        f"  tail     {_tail_named(schedule)}",
        f"  files    {shards.num_shards * (sites + 1):,}: each shard has one for each of "
        f"{sites} layers and hook points, and one of prompts",
        f"  bytes    {size.layers:,} of the layers, {size.prompts:,} of prompts, "
        f"{size.total:,} in total",
        f"  FLOPs    {plan.flops:.3g}, {plan.padded_flops:.3g} with padding ({padding:.1%} of the "
        "slots)",
        *_time_and_cost(plan, config, schedule),
        *_advice(plan, schedule),
    ]
    return "\n".join(lines)


def _samples_named(plan: Plan) -> str:
    if not isinstance(plan.samples_per_shard, AutoShards):
        return f"at most {plan.samples_per_shard:,} samples"
    counts, workers = plan.shard_samples, plan.samples_per_shard.workers
    fewest, most = int(counts.min(initial=plan.shards.samples)), int(counts.max(initial=0))
    numbers = f"{fewest:,} to " * (fewest < most) + count_of(most, "sample")
    return f"{numbers}, as auto chooses for {count_of(workers, 'worker')}"


def _tail_named(schedule: Schedule) -> str:
    if not schedule.waiting:
        return "no worker waits for another one at the end"
    return (
        f"{schedule.waiting:,} of {len(schedule.ends):,} workers wait at the end, up to "
        f"{schedule.longest_wait:.1%} of the run; {schedule.idle:.1%} of all workers' time is idle"
    )


def _time_and_cost(plan: Plan, config: Config, schedule: Schedule) -> list[str]:
    """Return the rows of time, cost and limit, or one that says why there are none."""
    accelerator, workers = ACCELERATORS[config.accelerator or "cpu"], len(schedule.ends)
    efficiency = config.efficiency or accelerator.efficiency
    alone = model_seconds(plan, config, accelerator, efficiency)
    if alone is None:
        why = "there is no sample" if accelerator.peak_flops else "give an --accelerator, not cpu"
        return [f"  time     not predicted: {why}"]
    sites = len(config.extractor.sites)
    limit = StorageLimit(alone, plan.size.total, sites, config.storage_bandwidth)
    seconds = limit.run_seconds(schedule.end / plan.slots)
    hours = seconds * workers * accelerator.devices / 3600
    price, source = accelerator.list_price, ", the list price in USD of November 2026"
    if config.device_price is not None:
        price, source = config.device_price, ""
    cost = f"{hours * price:,.2f}" if hours * price >= 0.01 else "under 0.01"
    return [
        f"  time     {timedelta(seconds=math.ceil(seconds))} on {workers} x {accelerator.name}, at "
        f"{efficiency:.0%} of the peak",
        f"  cost     {cost}: {hours:,.3g} device hours at {price:,.2f}{source}",
        f"  limit    {limit.describe(workers)}",
        f"  writing  {plan.size.total / seconds / workers / 1e6:,.3g} MB/s per worker",
        "Time and cost exclude starting workers and compiling.",
    ]


def _advice(plan: Plan, schedule: Schedule) -> Iterator[str]:
    """Yield what to change so that fewer workers wait at the end."""
    shards, workers = plan.shards.num_shards, len(schedule.ends)
    automatic = isinstance(plan.samples_per_shard, AutoShards)
    if shards < workers:
        lower = "lower" if automatic else "pass --samples_per_shard auto, or lower it or"
        yield f"Only {shards} of {workers} workers get a shard: {lower} --num_workers."
    elif schedule.idle > LONG_TAIL:
        why = "Some shards are much longer than others, or there are few samples: lower"
        if not automatic:
            why = "Workers are idle at the end: pass --samples_per_shard auto, or lower it or"
        yield f"{why} --num_workers."
