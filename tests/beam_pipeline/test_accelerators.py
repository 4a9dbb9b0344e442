"""One flag that sets all of Dataflow's options about an accelerator.

`tests/templates/test_job_request.py` compares them with the request that Beam's client sends.
"""

import math

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions

from beam_pipeline.accelerators import ACCELERATORS, check_mesh, worker_flags
from beam_pipeline.config import ConfigError
from beam_pipeline.options import parse_flags

IMAGE = "--sdk_container_image=region-docker.pkg.dev/project/repository/image:tag"
FLAGS = [
    "--model_path=random:tiny",
    "--tasks_file=gs://bucket/tasks",
    "--output_dir=gs://bucket/out",
]


def dataflow_flags(*flags: str) -> list[str]:
    return [
        "--runner=DataflowRunner",
        "--project=project",
        "--region=us-west4",
        "--temp_location=gs://bucket/temp",
        "--staging_location=gs://bucket/staging",
        "--no_auth",
        IMAGE,
        *flags,
    ]


def added(name: str, *flags: str) -> list[str]:
    return worker_flags(ACCELERATORS[name], PipelineOptions(dataflow_flags(*flags)))


@pytest.mark.parametrize(
    ("name", "service_option", "machine_type"),
    [
        ("tpu-v5e-8", "type:tpu-v5-lite-podslice;topology:2x4", "ct5lp-hightpu-8t"),
        ("tpu-v5p-4", "type:tpu-v5p-slice;topology:2x2x1", "ct5p-hightpu-4t"),
        ("gpu-h100-8", "type:nvidia-h100-80gb;count:8;install-nvidia-driver", "a3-highgpu-8g"),
    ],
)
def test_names_stand_for_what_dataflow_documents(name: str, service_option, machine_type):
    assert ACCELERATORS[name].worker_accelerator == service_option
    assert ACCELERATORS[name].machine_types[0] == machine_type


def test_a_tpu_worker_is_told_its_own_shape():
    for settings in ACCELERATORS.values():
        if settings.family == "tpu":
            environment = dict(settings.environment)
            chips = math.prod(map(int, environment["TPU_CHIPS_PER_HOST_BOUNDS"].split(",")))
            assert chips == settings.devices
            generation, size = environment["TPU_ACCELERATOR_TYPE"].rsplit("-", 1)
            assert int(size) == chips * (2 if generation == "v5p" else 1)


@pytest.mark.parametrize("runner", [[], ["--runner=FnApiRunner"], ["--runner=FlinkRunner"]])
def test_other_runners_get_no_dataflow_flags(runner: list[str]):
    assert worker_flags(ACCELERATORS["tpu-v5e-8"], PipelineOptions(runner)) == []


def test_the_users_choice_is_kept():
    chosen = [
        "--worker_machine_type=g2-standard-16",
        "--number_of_worker_harness_threads=9",
        "--disk_size_gb=55",
        "--num_workers=3",
        "--autoscaling_algorithm=THROUGHPUT_BASED",
        "--experiments=no_use_multiple_sdk_containers,other",
        "--dataflow_service_options="
        "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver:535",
    ]
    assert added("gpu-l4-1", *chosen) == []


@pytest.mark.parametrize(
    ("name", "flag", "named"),
    [
        ("tpu-v5e-8", "--worker_machine_type=ct5lp-hightpu-4t", "ct5lp-hightpu-8t"),
        ("tpu-v5e-1", "--resource_hint=min_ram=64GB", "drop the hint"),
        ("tpu-v5e-1", "--experiments=use_multiple_sdk_containers", "only one process"),
        ("tpu-v5e-1", "--dataflow_service_options=enable_prime", "Prime"),
        ("gpu-a100-1", "--flexrs_goal=COST_OPTIMIZED", "not support accelerators"),
        (
            "tpu-v5e-4",
            "--dataflow_service_options=worker_accelerator=type:tpu-v5-lite-podslice;topology:2x4",
            "topology:2x2",
        ),
        ("cpu", "--experiments=worker_accelerator=type:nvidia-l4;count:1", "--accelerator instead"),
        ("gpu-l4-1", "--sdk_container_image=", "needs --sdk_container_image"),
    ],
)
def test_flags_that_dataflow_would_reject_are_refused(name: str, flag: str, named: str):
    with pytest.raises(ConfigError, match=f"--accelerator={name}.*{named}"):
        added(name, flag)


def test_a_mesh_stays_within_a_worker():
    check_mesh(ACCELERATORS["tpu-v5e-8"], (4, 2))
    check_mesh(ACCELERATORS["tpu-v5e-8"], None)
    with pytest.raises(ConfigError, match=r"--mesh_shape=8,8 .*tpu-v5e-8 has 8.*--num_workers"):
        check_mesh(ACCELERATORS["tpu-v5e-8"], (8, 8))


def test_the_flag_brings_its_options_and_says_so(capsys: pytest.CaptureFixture[str]):
    config, options = parse_flags([*FLAGS, *dataflow_flags(), "--accelerator=tpu-v5e-8"])
    assert config.extractor.environment == ACCELERATORS["tpu-v5e-8"].environment
    assert options.view_as(WorkerOptions).machine_type == "ct5lp-hightpu-8t"
    assert "--worker_machine_type=ct5lp-hightpu-8t" in capsys.readouterr().err


def test_a_launcher_may_add_flags_that_this_beam_does_not_know():
    flags = [*FLAGS, *dataflow_flags("--some_new_flag=1"), "--template_location=gs://bucket/job"]
    assert parse_flags(flags)[0].output_dir == "gs://bucket/out"
    with pytest.raises(ConfigError, match="some_new_flag"):
        parse_flags([*FLAGS, "--some_new_flag=1"])
