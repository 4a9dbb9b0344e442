"""What a run would read, compute, write and cost, before anything is paid for. No JAX.

The tasks are read and tokenized here as the job's workers do it, so that what is counted is exact:
samples, tokens, shards and bytes. The device's time is not: it rests on an expected efficiency.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from activation_dataset.metadata import InputFile
from activation_dataset.prompts import Prompt
from activation_dataset.record import RecordKind
from beam_pipeline.accelerators import (
    AcceleratorSettings,
    expand_accelerator,
)
from beam_pipeline.config import Config, augmentation_plan, fit_to_model
from beam_pipeline.prices import Prices
from corpus.augment import AugmentationPlan
from corpus.task import RejectedTask
from corpus.template import PromptTemplate, load_template
from qwen.batching import Packing, packing_for, plan_steps
from qwen.config import ModelConfig
from qwen.source import ModelSource, open_model
from transforms.assign_shards import FINGERPRINT, fingerprint, plan_shards
from transforms.measure_output import OutputSize, output_size
from transforms.read_tasks import common_root, match_files, read_file, resolve_patterns
from transforms.tokenize_tasks import LengthLimit, prompts_of, variants_of


@dataclass
class Survey:
    """What all inputs hold together.

    Attributes:
      fingerprints: [samples] FINGERPRINT, in any order.
      size: bytes of the records.
      rejected: reason to number of tasks.
      files, input_bytes: read.
    """

    fingerprints: np.ndarray
    size: OutputSize
    rejected: Mapping[str, int] = field(default_factory=dict)
    files: int = 0
    input_bytes: int = 0


@dataclass(frozen=True)
class Work:
    """What the devices have to do.

    Attributes:
      depth: layers that run, from the first to the highest captured one.
      slots: token slots of all steps, padding included.
      flops: of the tokens alone.
      padded_flops: of all slots.
    """

    depth: int
    slots: int
    flops: int
    padded_flops: int


@dataclass(frozen=True)
class DeviceTime:
    """A prediction for workers of one kind.

    Attributes:
      seconds: until the last worker has finished its shards.
      device_hours: of all devices of all workers in that time, idle ones too.
    """

    accelerator: AcceleratorSettings
    workers: int
    efficiency: float
    seconds: float
    device_hours: float


@dataclass(frozen=True)
class Plan:
    """All that is predicted of a run.

    Attributes:
      longest: tokens of the longest prompt.
      time: None without an accelerator, or for one whose speed is not known.
    """

    samples: int
    tokens: int
    longest: int
    shards: int
    layers: int
    hook_points: int
    size: OutputSize
    rejected: Mapping[str, int]
    files: int
    input_bytes: int
    work: Work
    time: DeviceTime | None

    @property
    def sites(self) -> int:
        """What has files of its own: every hook point of every layer."""
        return self.layers * self.hook_points


def survey(
    patterns: Sequence[str],
    template: PromptTemplate,
    limit: LengthLimit,
    augmentation: AugmentationPlan | None,
    source: ModelSource,
    kind: RecordKind,
) -> Survey:
    """Reads and tokenizes all inputs; keeps 24 bytes of each sample.

    Args:
      kind: of the records that would be written.
    """
    rejected: Counter[str] = Counter()
    fingerprints = [np.empty(0, FINGERPRINT)]
    found = Survey(fingerprints[0], OutputSize())
    tokenizer = source.tokenizer()

    def prompts(path: str, name: str) -> Iterator[Prompt | RejectedTask | InputFile]:
        for item in read_file(path, name):
            if isinstance(item, InputFile | RejectedTask):
                yield item
                continue
            for variant in variants_of(item, augmentation):
                yield from prompts_of(variant, template, tokenizer, limit)

    for path in sorted({file.path for pattern in patterns for file in match_files(pattern)}):
        for item in prompts(path, path.removeprefix(common_root(patterns))):
            if isinstance(item, RejectedTask):
                rejected[item.reason] += 1
            elif isinstance(item, InputFile):
                found.files += 1
                found.input_bytes += item.bytes
            else:
                fingerprints.append(fingerprint(item))
                found.size += output_size(item, kind)
    found.fingerprints = np.concatenate(fingerprints)
    found.rejected = dict(sorted(rejected.items()))
    return found


def work_of(
    shards: Iterable[np.ndarray], model: ModelConfig, layers: Sequence[int], packing: Packing
) -> Work:
    """The floating-point work of shards, each [samples] lengths in the order of extraction.

    The highest layer counts in full, though with pooling "last" a part of it is left out.
    """
    depth = max(layers) + 1
    tokens = slots = pairs = 0
    for lengths in shards:
        tokens += int(lengths.sum())
        pairs += int((lengths * (lengths + 1) // 2).sum())
        slots += sum(step.shape.slots for step in plan_steps(lengths.tolist(), packing))
    attention = model.attention_flops(pairs)
    return Work(
        depth=depth,
        slots=slots,
        flops=depth * (tokens * model.layer_flops_per_token + attention),
        padded_flops=depth * (slots * model.layer_flops_per_token + attention),
    )


def packing_of(config: Config, accelerator: AcceleratorSettings | None) -> Packing:
    """How the extractor of a worker will pack its steps."""
    family = accelerator.family if accelerator else "cpu"
    form = "splash" if family == "tpu" else "blocked"
    if family == "gpu" and config.compute_dtype == "bfloat16":
        form = "cudnn"
    rows = (config.mesh_shape or (accelerator.devices if accelerator else 1,))[0]
    return packing_for(form, config.batch_size, rows)


def device_time(
    work: Work,
    shards: int,
    accelerator: AcceleratorSettings,
    mesh_shape: tuple[int, int] | None,
    workers: int,
    efficiency: float,
) -> DeviceTime | None:
    """How long the devices compute; None if their peak is not known.

    Workers take whole shards, so with few shards some of them wait for the others.
    """
    if accelerator.peak_flops is None or not shards:
        return None
    devices = math.prod(mesh_shape) if mesh_shape else accelerator.devices
    of_a_shard = work.padded_flops / shards / (accelerator.peak_flops * devices * efficiency)
    seconds = of_a_shard * math.ceil(shards / workers)
    device_hours = seconds * workers * accelerator.devices / 3600
    return DeviceTime(accelerator, workers, efficiency, seconds, device_hours)


def predict(
    found: Survey,
    model: ModelConfig,
    layers: Sequence[int],
    config: Config,
    workers: int = 1,
    efficiency: float | None = None,
) -> Plan:
    """Puts the plan together from what the inputs hold.

    Args:
      layers: to be captured.
      workers: that share the shards.
      efficiency: fraction of the devices' peak that the run reaches; that of the accelerator's
        kind by default.
    """
    accelerator = expand_accelerator(config.accelerator) if config.accelerator else None
    per_shard = config.samples_per_shard
    shards = plan_shards(found.fingerprints, per_shard)
    ordered = np.sort(found.fingerprints, order=["rank", "content"])["tokens"].astype(np.int64)
    work = work_of(
        (ordered[start : start + per_shard] for start in range(0, len(ordered), per_shard)),
        model,
        layers,
        packing_of(config, accelerator),
    )
    return Plan(
        samples=shards.samples,
        tokens=shards.tokens,
        longest=int(ordered.max(initial=0)),
        shards=shards.num_shards,
        layers=len(layers),
        hook_points=len(config.hook_points),
        size=found.size,
        rejected=found.rejected,
        files=found.files,
        input_bytes=found.input_bytes,
        work=work,
        time=device_time(
            work,
            shards.num_shards,
            accelerator,
            config.mesh_shape,
            workers,
            efficiency or accelerator.efficiency,
        )
        if accelerator
        else None,
    )


def make_plan(config: Config, workers: int, efficiency: float | None) -> Plan:
    """Opens the model, without its weights, reads all inputs, and predicts.

    Raises:
      ValueError: of several kinds, each naming the flag or file and what to do.
    """
    patterns = resolve_patterns(config.tasks_file)
    template = load_template(config.prompt_template)
    source = open_model(config.model_path)
    limit, layers = fit_to_model(config, source, template)
    kind = RecordKind(config.pooling, config.storage_dtype, source.config.hidden_size)
    found = survey(patterns, template, limit, augmentation_plan(config), source, kind)
    return predict(found, source.config, layers, config, workers, efficiency)


def report(plan: Plan, config: Config, prices: Prices) -> str:
    """The plan, for a person.

    Raises:
      PriceError: if there is no price of the accelerator.
    """
    work, size = plan.work, plan.size
    rejected = sum(plan.rejected.values())
    layers, each = f"{plan.layers} layers", "layer"
    if plan.hook_points > 1:
        layers, each = f"{layers} at {plan.hook_points} hook points", "layer and hook point"
    padding = 1 - plan.tokens / work.slots if work.slots else 0.0
    lines = [
        f"{config.model_path}: {plan.samples:,} samples, {plan.tokens:,} tokens, "
        f"{plan.longest:,} in the longest",
        f"  inputs   {plan.files:,} files, {plan.input_bytes / 1e6:,.2f} MB",
        f"  rejected {rejected:,}" + "".join(f"; {n} {why}" for why, n in plan.rejected.items()),
        f"  shards   {plan.shards:,} of at most {config.samples_per_shard:,} samples",
        f"  files    {plan.shards * (plan.sites + 1):,}: {layers} and the prompts, "
        "one file for each shard",
        f"  bytes    {size.layer:,} a {each}, {size.prompts:,} of prompts, "
        f"{size.total(plan.sites):,} in all",
        f"  FLOPs    {work.flops:.3g} in {work.depth} layers, {work.padded_flops:.3g} with "
        f"padding ({padding:.1%} of the slots)",
    ]
    return "\n".join([*lines, *_time_lines(plan, config, prices)])


def _time_lines(plan: Plan, config: Config, prices: Prices) -> list[str]:
    time = plan.time
    if time is None:
        why = "say on what with --accelerator"
        if config.accelerator:
            why = f"{config.accelerator} is no one kind of device"
        return [f"  time     not predicted: {why}"]
    price = prices.of(time.accelerator.price_key)
    cost = price * time.device_hours
    written = plan.size.total(plan.sites) / time.seconds / time.workers
    lines = [
        f"  time     {duration(time.seconds)} on {time.workers} x {time.accelerator.name}, where "
        f"{time.efficiency:.0%} of the peak is reached",
        f"  cost     {f'{cost:,.2f}' if cost >= 0.01 else 'under 0.01'} {prices.currency}: "
        f"{time.device_hours:,.3g} device hours at {price:,.2f}",
        f"  writing  {written / 1e6:,.3g} MB/s from each worker, or else that takes longer",
        "Time and cost are of the devices' work alone: starting workers, compiling, and what a run "
        "waits for at its end come on top.",
        f"Prices of {prices.date}: {prices.source}.",
    ]
    if time.workers > plan.shards:
        lines.append(
            f"Only {plan.shards} of {time.workers} workers have something to do: lower "
            "--samples_per_shard, or --num_workers."
        )
    return lines


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:,.1f} h"
