"""One name for a Dataflow worker's accelerator, expanded to all the options that belong to it.

Dataflow has a dozen options that must agree before a worker owns a TPU or a GPU, and rejects a job,
or runs it on no accelerator at all, where they don't. Each row of the table below is one set that
does agree: machine types and topologies as in "Dataflow support for TPUs" and "Dataflow support for
GPUs", peaks and memory as in the makers' data sheets.

A worker is one machine with one slice: 64 v5e chips are 8 workers of `tpu-v5e-8`.
"""

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

GB = 10**9
TERA = 10**12

ONE_PROCESS = "no_use_multiple_sdk_containers"
"""Dataflow's experiment for one SDK process per worker: a TPU can be opened by one process only."""

ACCELERATOR_DISK_GB = 100
"""Disk of a worker with an accelerator, gigabytes: an image of several, and a model on top."""

ASSUMED_EFFICIENCY = 0.3
"""Fraction of a device's peak that a run reaches, where nobody has predicted or measured it."""

V5E_EFFICIENCY = 0.5
"""The same for v5e as `benchmarks.tpu_check` predicts it (docs/performance.md), rounded down."""


class AcceleratorError(ValueError):
    """An accelerator that is unknown, or that does not go with the other flags."""


@dataclass(frozen=True)
class AcceleratorSettings:
    """What a worker of one kind is and what it needs.

    Attributes:
      name: what `--accelerator` takes.
      family: which of the locked requirements, and so which image, the worker needs.
      machine_types: the Compute Engine types that Dataflow accepts with it, the default first.
      worker_accelerator: value of Dataflow's service option of that name; None for a CPU.
      devices: JAX devices that one worker has, so that a mesh has at most this many.
      memory_bytes: memory of one device.
      peak_flops: bfloat16 multiplications and additions per second of one device, dense; None
        where it depends on the machine that the worker happens to get.
      efficiency: fraction of that peak that a run is expected to reach.
      harness_threads: bundles that a worker holds at once, so that reading and writing overlap
        with the device.
      price_key: the list price that applies, for one device and hour.
      environment: variables that must be set in the worker's process before JAX starts.
    """

    name: str
    family: Literal["cpu", "gpu", "tpu"]
    machine_types: tuple[str, ...]
    worker_accelerator: str | None
    devices: int
    memory_bytes: int
    peak_flops: float | None
    harness_threads: int
    price_key: str
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
) -> AcceleratorSettings:
    chips = [int(side) for side in topology.split("x")]
    bounds = ",".join(str(side) for side in [*chips, 1][:3])
    return AcceleratorSettings(
        name=name,
        family="tpu",
        machine_types=(machine_type,),
        worker_accelerator=f"type:{kind};topology:{topology}",
        devices=int(name.rpartition("-")[2]),
        memory_bytes=memory_bytes,
        peak_flops=peak_flops,
        harness_threads=4,
        price_key=name.rpartition("-")[0],
        efficiency=V5E_EFFICIENCY if kind == V5E else ASSUMED_EFFICIENCY,
        environment=(
            # A Dataflow worker has no TPU metadata, so its single host is described here.
            ("TPU_SKIP_MDS_QUERY", "1"),
            ("TPU_HOST_BOUNDS", "1,1,1"),
            ("TPU_CHIPS_PER_HOST_BOUNDS", bounds),
            ("TPU_WORKER_HOSTNAMES", "localhost"),
            ("TPU_WORKER_ID", "0"),
            ("TPU_ACCELERATOR_TYPE", tpu_name),
        ),
    )


def _gpu(
    name: str, kind: str, machine_types: tuple[str, ...], memory_bytes: int, peak_flops: float
) -> AcceleratorSettings:
    count = int(name.rpartition("-")[2])
    return AcceleratorSettings(
        name=name,
        family="gpu",
        machine_types=machine_types,
        worker_accelerator=f"type:{kind};count:{count};install-nvidia-driver",
        devices=count,
        memory_bytes=memory_bytes,
        peak_flops=peak_flops,
        harness_threads=4,
        price_key=name.rpartition("-")[0],
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
            price_key="cpu",
        ),
        # v5p is named after its cores, two in a chip; the others after their chips.
        _tpu("tpu-v5e-1", V5E, "1x1", "ct5lp-hightpu-1t", "v5litepod-1", 16 * GB, 197 * TERA),
        _tpu("tpu-v5e-4", V5E, "2x2", "ct5lp-hightpu-4t", "v5litepod-4", 16 * GB, 197 * TERA),
        _tpu("tpu-v5e-8", V5E, "2x4", "ct5lp-hightpu-8t", "v5litepod-8", 16 * GB, 197 * TERA),
        _tpu("tpu-v6e-1", V6E, "1x1", "ct6e-standard-1t", "v6e-1", 32 * GB, 918 * TERA),
        _tpu("tpu-v6e-4", V6E, "2x2", "ct6e-standard-4t", "v6e-4", 32 * GB, 918 * TERA),
        _tpu("tpu-v6e-8", V6E, "2x4", "ct6e-standard-8t", "v6e-8", 32 * GB, 918 * TERA),
        _tpu("tpu-v5p-4", V5P, "2x2x1", "ct5p-hightpu-4t", "v5p-8", 95 * GB, 459 * TERA),
        _gpu("gpu-l4-1", "nvidia-l4", G2, 24 * GB, 121 * TERA),
        _gpu("gpu-a100-1", "nvidia-tesla-a100", ("a2-highgpu-1g",), 40 * GB, 312 * TERA),
        _gpu("gpu-a100-80gb-1", "nvidia-a100-80gb", ("a2-ultragpu-1g",), 80 * GB, 312 * TERA),
        _gpu("gpu-h100-8", "nvidia-h100-80gb", ("a3-highgpu-8g",), 80 * GB, 989 * TERA),
    )
}


def expand_accelerator(name: str) -> AcceleratorSettings:
    """The settings of one of the names in the table.

    Raises:
      AcceleratorError: for another name; it lists those there are.
    """
    if name not in ACCELERATORS:
        raise AcceleratorError(
            f"--accelerator={name} is not known; choose one of {', '.join(ACCELERATORS)}"
        )
    return ACCELERATORS[name]


def worker_flags(settings: AcceleratorSettings, options: PipelineOptions) -> list[str]:
    """The Beam flags that `settings` adds to what the user gave; nothing but on Dataflow.

    A choice that leaves the worker valid is the user's (threads, disk, number of workers,
    autoscaling, a machine type that fits).

    Raises:
      AcceleratorError: for a choice that Dataflow would reject, or that would leave the accelerator
        unused.
    """
    if not _runs_on_dataflow(options):
        return []
    _check_options(settings, options)
    worker = options.view_as(WorkerOptions)
    flags = []
    if worker.machine_type is None:
        flags.append(f"--worker_machine_type={settings.machine_types[0]}")
    if settings.worker_accelerator and not _own_accelerator(options):
        flags.append(f"--dataflow_service_options=worker_accelerator={settings.worker_accelerator}")
    if ONE_PROCESS not in _experiments(options):
        flags.append(f"--experiments={ONE_PROCESS}")
    if options.view_as(DebugOptions).number_of_worker_harness_threads is None:
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
    """Whether one worker has the devices of a mesh: a mesh does not reach beyond a worker.

    Raises:
      AcceleratorError: if it has fewer.
    """
    if mesh_shape and settings.family != "cpu" and math.prod(mesh_shape) > settings.devices:
        data, model = mesh_shape
        raise AcceleratorError(
            f"--mesh_shape={data},{model} needs {data * model} devices in one worker, "
            f"{settings.name} has {settings.devices}; for more devices in all, take more workers "
            "(--num_workers)"
        )


def _check_options(settings: AcceleratorSettings, options: PipelineOptions) -> None:
    worker = options.view_as(WorkerOptions)
    experiments = _experiments(options)
    service_options = options.view_as(GoogleCloudOptions).dataflow_service_options or []

    def refuse(given: str, why: str) -> None:
        raise AcceleratorError(f"{given} does not go with --accelerator={settings.name}: {why}")

    if "enable_prime" in [*experiments, *service_options]:
        refuse("enable_prime", "Dataflow Prime chooses the machines itself; drop one of the two")
    if "use_multiple_sdk_containers" in experiments:
        refuse(
            "--experiments=use_multiple_sdk_containers",
            "each process would load a model of its own, and a TPU opens for one process only",
        )
    if settings.family == "cpu":
        if _own_accelerator(options):
            refuse("worker_accelerator", "name that accelerator with --accelerator instead")
        return
    hints = options.view_as(StandardOptions).resource_hints
    if hints:
        refuse(
            f"--resource_hint={hints[0]}",
            "any resource hint turns on right fitting, which Dataflow does not combine with "
            "worker_accelerator; drop the hint",
        )
    if worker.machine_type not in (None, *settings.machine_types):
        refuse(
            f"--worker_machine_type={worker.machine_type}",
            f"it runs on {' or '.join(settings.machine_types)}; leave the machine type out",
        )
    own = _own_accelerator(options)
    if (
        own
        and settings.worker_accelerator
        and _hardware(own) != _hardware(settings.worker_accelerator)
    ):
        refuse(f"worker_accelerator={own}", f"that would be {settings.worker_accelerator}")
    if options.view_as(GoogleCloudOptions).flexrs_goal:
        refuse("--flexrs_goal", "flexible resource scheduling has no accelerators")
    if not worker.sdk_container_image:
        raise AcceleratorError(
            f"--accelerator={settings.name} needs --sdk_container_image: the worker's image must "
            f"hold JAX for its {settings.family.upper()} (docs/dataflow.md says how to build it)"
        )


def _runs_on_dataflow(options: PipelineOptions) -> bool:
    runner = options.view_as(StandardOptions).runner
    return bool(runner) and runner.lower().endswith(("dataflow", "dataflowrunner"))


def _experiments(options: PipelineOptions) -> list[str]:
    given: list[str] = options.view_as(DebugOptions).experiments or []
    return [name for group in given for name in group.split(",")]


def _own_accelerator(options: PipelineOptions) -> str | None:
    """The `worker_accelerator` that the user gave, as a service option or as an experiment."""
    service_options = options.view_as(GoogleCloudOptions).dataflow_service_options or []
    for option in [*service_options, *(options.view_as(DebugOptions).experiments or [])]:
        key, _, value = option.partition("=")
        if key == "worker_accelerator":
            return str(value)
    return None


def _hardware(worker_accelerator: str) -> dict[str, str]:
    """Type and count or topology of a `worker_accelerator`, without driver and reservation."""
    fields = dict(
        field.partition(":")[::2] for field in worker_accelerator.split(";") if ":" in field
    )
    return {key: fields[key] for key in ("type", "count", "topology") if key in fields}
