"""Accelerators of Dataflow workers: one name for all Beam options that must agree.

Machine types and topologies follow "Dataflow support for TPUs" and "Dataflow support for GPUs".
Peaks and memory follow the data sheets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class AcceleratorSettings:
    """One kind of worker: one machine, with its devices.

    Attributes:
        name: value of `--accelerator`: family, kind of device, and number of devices.
        machine_types: Compute Engine types that Dataflow accepts with it, the default first.
        worker_accelerator: value of Dataflow's service option of that name; None for a CPU.
        memory_bytes: memory of one device.
        peak_flops: dense bfloat16 FLOP/s of one device; None if it depends on the machine.
        list_price: on-demand price in us-central1 on 2026-11-23, in USD per hour of one device with
            its share of the machine, without Dataflow's own charges.
        environment: variables that must be set in the worker's process before JAX starts.
    """

    name: str
    machine_types: tuple[str, ...]
    worker_accelerator: str | None
    memory_bytes: int
    peak_flops: float | None
    list_price: float
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def family(self) -> str:
        """`cpu`, `gpu` or `tpu`, which determines the image that the worker needs."""
        return self.name.partition("-")[0]

    @property
    def devices(self) -> int:
        """JAX devices of one worker, the maximum for a mesh."""
        return int(self.name.rpartition("-")[2]) if self.worker_accelerator else 1

    @property
    def harness_threads(self) -> int:
        """Concurrent bundles of a worker, so that writing overlaps with the device."""
        return 4 if self.worker_accelerator else 2

    @property
    def efficiency(self) -> float:
        """Expected fraction of the peak, to be replaced by a measurement.

        For v5e, `benchmarks.tpu_check` predicts it (docs/performance.md); for others it is assumed.
        """
        return 0.5 if self.name.startswith("tpu-v5e") else 0.3


def _tpu(
    name: str, kind: str, topology: str, machine_type: str, tpu_name: str
) -> AcceleratorSettings:
    memory, peak, price = {
        V5E: (16 * GB, 197 * TERA, 1.20),
        V6E: (32 * GB, 918 * TERA, 2.70),
        V5P: (95 * GB, 459 * TERA, 4.20),
    }[kind]
    environment = (
        # A Dataflow worker has no TPU metadata, so these variables describe its single host.
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_HOST_BOUNDS", "1,1,1"),
        ("TPU_CHIPS_PER_HOST_BOUNDS", ",".join([*topology.split("x"), "1"][:3])),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_WORKER_ID", "0"),
        ("TPU_ACCELERATOR_TYPE", tpu_name),
    )
    accelerator = f"type:{kind};topology:{topology}"
    return AcceleratorSettings(name, (machine_type,), accelerator, memory, peak, price, environment)


def _gpu(
    name: str, kind: str, machine_types: tuple[str, ...], memory: int, peak: float, price: float
) -> AcceleratorSettings:
    accelerator = f"type:{kind};count:{name.rpartition('-')[2]};install-nvidia-driver"
    return AcceleratorSettings(name, machine_types, accelerator, memory, peak, price)


V5E, V6E, V5P = "tpu-v5-lite-podslice", "tpu-v6e-slice", "tpu-v5p-slice"
G2 = tuple(f"g2-standard-{cpus}" for cpus in (8, 4, 12, 16, 32))

ACCELERATORS: dict[str, AcceleratorSettings] = {
    settings.name: settings
    for settings in (
        AcceleratorSettings("cpu", ("n2-standard-8",), None, 32 * 2**30, None, 0.39),
        # v5p is named after its cores, two in a chip; other kinds are named after their chips.
        _tpu("tpu-v5e-1", V5E, "1x1", "ct5lp-hightpu-1t", "v5litepod-1"),
        _tpu("tpu-v5e-4", V5E, "2x2", "ct5lp-hightpu-4t", "v5litepod-4"),
        _tpu("tpu-v5e-8", V5E, "2x4", "ct5lp-hightpu-8t", "v5litepod-8"),
        _tpu("tpu-v6e-1", V6E, "1x1", "ct6e-standard-1t", "v6e-1"),
        _tpu("tpu-v6e-4", V6E, "2x2", "ct6e-standard-4t", "v6e-4"),
        _tpu("tpu-v6e-8", V6E, "2x4", "ct6e-standard-8t", "v6e-8"),
        _tpu("tpu-v5p-4", V5P, "2x2x1", "ct5p-hightpu-4t", "v5p-8"),
        _gpu("gpu-l4-1", "nvidia-l4", G2, 24 * GB, 121 * TERA, 0.85),
        _gpu("gpu-a100-1", "nvidia-tesla-a100", ("a2-highgpu-1g",), 40 * GB, 312 * TERA, 3.67),
        _gpu("gpu-a100-80gb-1", "nvidia-a100-80gb", ("a2-ultragpu-1g",), 80 * GB, 312 * TERA, 5.07),
        _gpu("gpu-h100-8", "nvidia-h100-80gb", ("a3-highgpu-8g",), 80 * GB, 989 * TERA, 11.06),
    )
}


def worker_flags(settings: AcceleratorSettings, options: PipelineOptions) -> list[str]:
    """Return the Beam flags to add for Dataflow; none for other runners.

    Flags of the user take precedence if the worker stays valid.

    Raises:
        ConfigError: for a flag that Dataflow would reject, or that would leave the accelerator
            unused.
    """
    if not runs_on_dataflow(options):
        return []
    _check_options(settings, options)
    worker = options.view_as(WorkerOptions)
    services = _services(options)
    flags = []
    if worker.machine_type is None:
        flags.append(f"--worker_machine_type={settings.machine_types[0]}")
    if settings.worker_accelerator and not _own_accelerator(services):
        flags.append(f"--dataflow_service_options=worker_accelerator={settings.worker_accelerator}")
    if ONE_PROCESS not in services:
        flags.append(f"--experiments={ONE_PROCESS}")
    if options.view_as(DebugOptions).number_of_worker_harness_threads is None:
        flags.append(f"--number_of_worker_harness_threads={settings.harness_threads}")
    if settings.family != "cpu":
        if worker.disk_size_gb is None:
            flags.append(f"--disk_size_gb={ACCELERATOR_DISK_GB}")
        # The autoscaler would remove a worker that waits for its device, because it looks idle.
        if worker.autoscaling_algorithm is None:
            flags.append("--autoscaling_algorithm=NONE")
            if worker.num_workers is None:
                flags.append("--num_workers=1")
    return flags


def runs_on_dataflow(options: PipelineOptions) -> bool:
    """Return True if the runner is Dataflow, by any of its names."""
    runner = (options.view_as(StandardOptions).runner or "").lower()
    return runner.endswith(("dataflow", "dataflowrunner"))


def check_mesh(settings: AcceleratorSettings, mesh_shape: tuple[int, int] | None) -> None:
    """Raise `ConfigError` if a mesh is larger than one worker, which it cannot span."""
    if mesh_shape and settings.family != "cpu" and math.prod(mesh_shape) > settings.devices:
        data, model = mesh_shape
        raise ConfigError(
            f"--mesh_shape={data},{model} needs {data * model} devices in one worker, but "
            f"{settings.name} has {settings.devices}. Choose a smaller mesh; for more devices in "
            "total, add workers with --num_workers."
        )


def _check_options(settings: AcceleratorSettings, options: PipelineOptions) -> None:
    def refuse(given: str, why: str) -> None:
        raise ConfigError(f"{given} conflicts with --accelerator={settings.name}: {why}")

    worker = options.view_as(WorkerOptions)
    services = _services(options)
    if "enable_prime" in services:
        refuse("enable_prime", "Dataflow Prime chooses the machines itself; drop one of the two")
    if "use_multiple_sdk_containers" in services:
        refuse(
            "--experiments=use_multiple_sdk_containers",
            "each process would load its own model, and only one process can open a TPU",
        )
    own = _own_accelerator(services)
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
    # The user chooses the driver, which follows type and count or topology.
    if own and own.split(";")[:2] != settings.worker_accelerator.split(";")[:2]:
        refuse(f"worker_accelerator={own}", f"this worker needs {settings.worker_accelerator}")
    if options.view_as(GoogleCloudOptions).flexrs_goal:
        refuse("--flexrs_goal", "flexible resource scheduling does not support accelerators")
    if not worker.sdk_container_image:
        raise ConfigError(
            f"--accelerator={settings.name} needs --sdk_container_image: the worker's image must "
            f"contain JAX for its {settings.family.upper()} (docs/how_to/dataflow.md describes how "
            "to build it)"
        )


def _services(options: PipelineOptions) -> list[str]:
    experiments = options.view_as(DebugOptions).experiments or []
    service_options = options.view_as(GoogleCloudOptions).dataflow_service_options or []
    return [name for group in [*experiments, *service_options] for name in group.split(",")]


def _own_accelerator(services: list[str]) -> str | None:
    prefix = "worker_accelerator="
    return next((each.removeprefix(prefix) for each in services if each.startswith(prefix)), None)
