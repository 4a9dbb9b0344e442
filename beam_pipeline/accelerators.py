"""Accelerators of Dataflow workers: one name for all the Beam options that belong together.

Dataflow has a dozen options that must agree before a worker gets a TPU or a GPU. Where they do not
agree, it rejects the job or runs it without an accelerator. Each row of the table below is one set
that does agree. Machine types and topologies are those of "Dataflow support for TPUs" and "Dataflow
support for GPUs"; peaks and memory are those of the data sheets.

A worker is one machine with one slice: 64 v5e chips are 8 workers of `tpu-v5e-8`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)

from beam_pipeline.config import ConfigError

GB = 10**9
TERA = 10**12

ONE_PROCESS = "no_use_multiple_sdk_containers"
"""Dataflow's experiment for one SDK process per worker: only one process can open a TPU."""

ACCELERATOR_DISK_GB = 100
"""Disk of a worker with an accelerator, in gigabytes: room for the image and a model."""

ASSUMED_EFFICIENCY = 0.3
"""Fraction of a device's peak that a run reaches, where nobody has predicted or measured it."""

V5E_EFFICIENCY = 0.5
"""The same for v5e, as `benchmarks.tpu_check` predicts it (docs/performance.md), rounded down."""

PRICES_SOURCE = (
    "List prices on demand in us-central1, in USD, of 2026-11-23 (cloud.google.com/tpu/pricing and "
    "cloud.google.com/products/compute/pricing), without Dataflow's own charges."
)


@dataclass(frozen=True)
class AcceleratorSettings:
    """One kind of worker.

    Attributes:
      name: the value of `--accelerator`.
      family: which of the locked requirements, and so which image, the worker needs.
      machine_types: the Compute Engine types that Dataflow accepts with it, the default first.
      worker_accelerator: value of Dataflow's service option of that name; None for a CPU.
      devices: JAX devices of one worker, the most that a mesh can have.
      memory_bytes: memory of one device.
      peak_flops: bfloat16 FLOP/s of one device, dense; None if it depends on the machine that the
        worker happens to get.
      harness_threads: bundles that a worker works on at once, so that reading and writing overlap
        with the device.
      list_price: of one device with its share of the machine, in USD per hour.
      environment: variables that must be set in the worker's process before JAX starts.
      efficiency: fraction of the peak that a run is expected to reach.
    """

    name: str
    family: Literal["cpu", "gpu", "tpu"]
    machine_types: tuple[str, ...]
    worker_accelerator: str | None
    devices: int
    memory_bytes: int
    peak_flops: float | None
    harness_threads: int
    list_price: float
    environment: tuple[tuple[str, str], ...] = ()
    efficiency: float = ASSUMED_EFFICIENCY


def _tpu(
    name: str,
    kind: str,
    topology: str,
    machine_type: str,
    tpu_name: str,
    memory_bytes: int,
    peak_flops: float,
    list_price: float,
) -> AcceleratorSettings:
    devices = int(name.rpartition("-")[2])
    bounds = ",".join([*topology.split("x"), "1"][:3])
    return AcceleratorSettings(
        name=name,
        family="tpu",
        machine_types=(machine_type,),
        worker_accelerator=f"type:{kind};topology:{topology}",
        devices=devices,
        memory_bytes=memory_bytes,
        peak_flops=peak_flops,
        harness_threads=4,
        list_price=list_price,
        efficiency=V5E_EFFICIENCY if kind == V5E else ASSUMED_EFFICIENCY,
        environment=(
            # A Dataflow worker has no TPU metadata, so describe its single host here.
            ("TPU_SKIP_MDS_QUERY", "1"),
            ("TPU_HOST_BOUNDS", "1,1,1"),
            ("TPU_CHIPS_PER_HOST_BOUNDS", bounds),
            ("TPU_WORKER_HOSTNAMES", "localhost"),
            ("TPU_WORKER_ID", "0"),
            ("TPU_ACCELERATOR_TYPE", tpu_name),
        ),
    )


def _gpu(
    name: str,
    kind: str,
    machine_types: tuple[str, ...],
    memory_bytes: int,
    peak_flops: float,
    list_price: float,
) -> AcceleratorSettings:
    devices = int(name.rpartition("-")[2])
    return AcceleratorSettings(
        name=name,
        family="gpu",
        machine_types=machine_types,
        worker_accelerator=f"type:{kind};count:{devices};install-nvidia-driver",
        devices=devices,
        memory_bytes=memory_bytes,
        peak_flops=peak_flops,
        harness_threads=4,
        list_price=list_price,
    )


V5E, V6E, V5P = "tpu-v5-lite-podslice", "tpu-v6e-slice", "tpu-v5p-slice"
G2 = tuple(f"g2-standard-{cpus}" for cpus in (8, 4, 12, 16, 32))

ACCELERATORS: dict[str, AcceleratorSettings] = {
    settings.name: settings
    for settings in (
        AcceleratorSettings(
            name="cpu",
            family="cpu",
            machine_types=("n2-standard-8",),
            worker_accelerator=None,
            devices=1,
            memory_bytes=32 * 2**30,
            peak_flops=None,
            harness_threads=2,
            list_price=0.39,
        ),
        # v5p is named after its cores, two in a chip; the others are named after their chips.
        _tpu("tpu-v5e-1", V5E, "1x1", "ct5lp-hightpu-1t", "v5litepod-1", 16 * GB, 197 * TERA, 1.20),
        _tpu("tpu-v5e-4", V5E, "2x2", "ct5lp-hightpu-4t", "v5litepod-4", 16 * GB, 197 * TERA, 1.20),
        _tpu("tpu-v5e-8", V5E, "2x4", "ct5lp-hightpu-8t", "v5litepod-8", 16 * GB, 197 * TERA, 1.20),
        _tpu("tpu-v6e-1", V6E, "1x1", "ct6e-standard-1t", "v6e-1", 32 * GB, 918 * TERA, 2.70),
        _tpu("tpu-v6e-4", V6E, "2x2", "ct6e-standard-4t", "v6e-4", 32 * GB, 918 * TERA, 2.70),
        _tpu("tpu-v6e-8", V6E, "2x4", "ct6e-standard-8t", "v6e-8", 32 * GB, 918 * TERA, 2.70),
        _tpu("tpu-v5p-4", V5P, "2x2x1", "ct5p-hightpu-4t", "v5p-8", 95 * GB, 459 * TERA, 4.20),
        _gpu("gpu-l4-1", "nvidia-l4", G2, 24 * GB, 121 * TERA, 0.85),
        _gpu("gpu-a100-1", "nvidia-tesla-a100", ("a2-highgpu-1g",), 40 * GB, 312 * TERA, 3.67),
        _gpu("gpu-a100-80gb-1", "nvidia-a100-80gb", ("a2-ultragpu-1g",), 80 * GB, 312 * TERA, 5.07),
        _gpu("gpu-h100-8", "nvidia-h100-80gb", ("a3-highgpu-8g",), 80 * GB, 989 * TERA, 11.06),
    )
}


def worker_flags(settings: AcceleratorSettings, options: PipelineOptions) -> list[str]:
    """Return the Beam flags to add to those of the user; none for other runners than Dataflow.

    The user's own choice of threads, disk, autoscaling, number of workers and a machine type that
    fits is kept.

    Raises:
      ConfigError: for a flag that Dataflow would reject, or that would leave the accelerator
        unused.
    """
    runner = (options.view_as(StandardOptions).runner or "").lower()
    if not runner.endswith(("dataflow", "dataflowrunner")):
        return []
    _check_options(settings, options)
    worker = options.view_as(WorkerOptions)
    debug = options.view_as(DebugOptions)
    flags = []
    if worker.machine_type is None:
        flags.append(f"--worker_machine_type={settings.machine_types[0]}")
    if settings.worker_accelerator and not _own_accelerator(options):
        flags.append(f"--dataflow_service_options=worker_accelerator={settings.worker_accelerator}")
    if ONE_PROCESS not in _experiments(options):
        flags.append(f"--experiments={ONE_PROCESS}")
    if debug.number_of_worker_harness_threads is None:
        flags.append(f"--number_of_worker_harness_threads={settings.harness_threads}")
    if settings.family != "cpu":
        if worker.disk_size_gb is None:
            flags.append(f"--disk_size_gb={ACCELERATOR_DISK_GB}")
        # A worker that waits for its device looks idle, and the autoscaler would remove it.
        if worker.autoscaling_algorithm is None:
            flags.append("--autoscaling_algorithm=NONE")
            if worker.num_workers is None:
                flags.append("--num_workers=1")
    return flags


def check_mesh(settings: AcceleratorSettings, mesh_shape: tuple[int, int] | None) -> None:
    """Check that one worker has the devices of a mesh; a mesh cannot span workers.

    Raises:
      ConfigError: if the worker has fewer.
    """
    if mesh_shape and settings.family != "cpu" and math.prod(mesh_shape) > settings.devices:
        data, model = mesh_shape
        raise ConfigError(
            f"--mesh_shape={data},{model} needs {data * model} devices in one worker, but "
            f"{settings.name} has {settings.devices}. Choose a smaller mesh; for more devices in "
            "all, add workers with --num_workers."
        )


def _check_options(settings: AcceleratorSettings, options: PipelineOptions) -> None:
    def refuse(given: str, why: str) -> None:
        raise ConfigError(f"{given} does not go with --accelerator={settings.name}: {why}")

    worker = options.view_as(WorkerOptions)
    cloud = options.view_as(GoogleCloudOptions)
    experiments, own = _experiments(options), _own_accelerator(options)
    if "enable_prime" in [*experiments, *(cloud.dataflow_service_options or [])]:
        refuse("enable_prime", "Dataflow Prime chooses the machines itself; drop one of the two")
    if "use_multiple_sdk_containers" in experiments:
        refuse(
            "--experiments=use_multiple_sdk_containers",
            "each process would load a model of its own, and only one process can open a TPU",
        )
    if settings.worker_accelerator is None:
        if own:
            refuse("worker_accelerator", "name that accelerator with --accelerator instead")
        return
    if hints := options.view_as(StandardOptions).resource_hints:
        refuse(
            f"--resource_hint={hints[0]}",
            "any resource hint turns on right fitting, which Dataflow does not combine with "
            "worker_accelerator; drop the hint",
        )
    if worker.machine_type not in (None, *settings.machine_types):
        refuse(
            f"--worker_machine_type={worker.machine_type}",
            f"it runs on {' or '.join(settings.machine_types)}; drop the machine type",
        )
    # What follows type and count or topology is the driver, which is the user's choice.
    if own and own.split(";")[:2] != settings.worker_accelerator.split(";")[:2]:
        refuse(f"worker_accelerator={own}", f"that would be {settings.worker_accelerator}")
    if cloud.flexrs_goal:
        refuse("--flexrs_goal", "flexible resource scheduling has no accelerators")
    if not worker.sdk_container_image:
        raise ConfigError(
            f"--accelerator={settings.name} needs --sdk_container_image: the worker's image must "
            f"contain JAX for its {settings.family.upper()} (docs/dataflow.md says how to build it)"
        )


def _experiments(options: PipelineOptions) -> list[str]:
    given: list[str] = options.view_as(DebugOptions).experiments or []
    return [name for group in given for name in group.split(",")]


def _own_accelerator(options: PipelineOptions) -> str | None:
    """Return the user's own `worker_accelerator`, a service option or an experiment."""
    service_options = options.view_as(GoogleCloudOptions).dataflow_service_options or []
    for option in [*service_options, *(options.view_as(DebugOptions).experiments or [])]:
        key, _, value = option.partition("=")
        if key == "worker_accelerator":
            return str(value)
    return None
