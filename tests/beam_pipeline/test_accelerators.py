import pytest
from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions
from apache_beam.runners.dataflow.internal import apiclient

from beam_pipeline.accelerators import (
    ACCELERATORS,
    AcceleratorError,
    check_mesh,
    expand_accelerator,
    worker_flags,
)
from beam_pipeline.command import main
from beam_pipeline.config import ConfigError
from beam_pipeline.options import parse_flags

IMAGE = "--sdk_container_image=region-docker.pkg.dev/project/repository/image:tag"
WITH_DEVICE = [name for name, settings in ACCELERATORS.items() if settings.family != "cpu"]
TPUS = [name for name, settings in ACCELERATORS.items() if settings.family == "tpu"]


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


def merged(name: str, *flags: str) -> list[str]:
    return worker_flags(expand_accelerator(name), PipelineOptions(dataflow_flags(*flags)))


def environment_of_request(name: str, *flags: str):
    """What Beam's own client puts into the CreateJob request for these flags."""
    options = PipelineOptions([*dataflow_flags(*flags), *merged(name, *flags)])
    return apiclient.Environment([], options, "2", "gs://bucket/staging/pipeline.pb").proto


@pytest.mark.parametrize("name", ACCELERATORS)
def test_the_job_request_asks_for_the_accelerator(name: str):
    settings = ACCELERATORS[name]
    request = environment_of_request(name)
    (pool,) = request.worker_pools
    assert pool.machine_type == settings.machine_types[0]
    assert pool.num_threads_per_worker == settings.harness_threads
    assert "no_use_multiple_sdk_containers" in request.experiments
    assert "use_multiple_sdk_containers" not in request.experiments
    assert list(request.service_options) == (
        [f"worker_accelerator={settings.worker_accelerator}"] if settings.worker_accelerator else []
    )
    assert pool.disk_size_gb == (100 if settings.worker_accelerator else 0)


@pytest.mark.parametrize("name", WITH_DEVICE)
def test_the_autoscaler_does_not_take_a_worker_that_waits_for_its_device(name: str):
    request = environment_of_request(name, "--num_workers=8")
    (pool,) = request.worker_pools
    assert pool.num_workers == 8
    assert pool.autoscaling_settings.algorithm.name == "AUTOSCALING_ALGORITHM_NONE"


def test_one_worker_is_asked_for_where_the_user_says_nothing():
    assert "--num_workers=1" in merged("tpu-v5e-8")


@pytest.mark.parametrize(
    ("name", "service_option", "machine_type"),
    [
        ("tpu-v5e-1", "type:tpu-v5-lite-podslice;topology:1x1", "ct5lp-hightpu-1t"),
        ("tpu-v5e-8", "type:tpu-v5-lite-podslice;topology:2x4", "ct5lp-hightpu-8t"),
        ("tpu-v6e-4", "type:tpu-v6e-slice;topology:2x2", "ct6e-standard-4t"),
        ("tpu-v5p-4", "type:tpu-v5p-slice;topology:2x2x1", "ct5p-hightpu-4t"),
        ("gpu-l4-1", "type:nvidia-l4;count:1;install-nvidia-driver", "g2-standard-8"),
        ("gpu-h100-8", "type:nvidia-h100-80gb;count:8;install-nvidia-driver", "a3-highgpu-8g"),
    ],
)
def test_names_stand_for_what_dataflow_documents(name: str, service_option, machine_type):
    settings = expand_accelerator(name)
    assert settings.worker_accelerator == service_option
    assert settings.machine_types[0] == machine_type


@pytest.mark.parametrize("name", TPUS)
def test_a_tpu_worker_is_told_its_own_shape(name: str):
    settings = ACCELERATORS[name]
    environment = dict(settings.environment)
    chips = 1
    for side in environment["TPU_CHIPS_PER_HOST_BOUNDS"].split(","):
        chips *= int(side)
    assert chips == settings.devices
    generation, size = environment["TPU_ACCELERATOR_TYPE"].rsplit("-", 1)
    assert int(size) == chips * (2 if generation == "v5p" else 1)
    assert environment["TPU_SKIP_MDS_QUERY"] == "1"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(AcceleratorError, match=r"tpu-v5e-64 is not known.*tpu-v5e-8.*gpu-l4-1"):
        expand_accelerator("tpu-v5e-64")


@pytest.mark.parametrize(
    "runner", [[], ["--runner=DirectRunner"], ["--runner=FnApiRunner"], ["--runner=FlinkRunner"]]
)
def test_other_runners_get_no_dataflow_flags(runner: list[str]):
    assert worker_flags(expand_accelerator("tpu-v5e-8"), PipelineOptions(runner)) == []


def test_what_the_user_chose_stands():
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
    assert merged("gpu-l4-1", *chosen) == []


def test_a_cpu_worker_may_be_another_machine_with_another_disk():
    disk = "compute.googleapis.com/projects//zones//diskTypes/pd-ssd"
    flags = ["--worker_machine_type=c3-standard-8", f"--worker_disk_type={disk}"]
    (pool,) = environment_of_request("cpu", *flags).worker_pools
    assert pool.machine_type == "c3-standard-8"
    assert pool.disk_type == disk


@pytest.mark.parametrize(
    ("name", "flag", "message"),
    [
        ("tpu-v5e-8", "--worker_machine_type=ct5lp-hightpu-4t", "it runs on ct5lp-hightpu-8t"),
        ("gpu-l4-1", "--machine_type=n1-standard-4", "g2-standard-8 or g2-standard-4"),
        ("tpu-v5e-1", "--resource_hint=min_ram=64GB", "right fitting"),
        ("tpu-v5e-1", "--experiments=use_multiple_sdk_containers", "one process only"),
        ("tpu-v5e-1", "--dataflow_service_options=enable_prime", "Prime"),
        ("cpu", "--experiments=enable_prime", "Prime"),
        ("gpu-a100-1", "--flexrs_goal=COST_OPTIMIZED", "no accelerators"),
        (
            "tpu-v5e-4",
            "--dataflow_service_options=worker_accelerator=type:tpu-v5-lite-podslice;topology:2x4",
            "topology:2x2",
        ),
        (
            "cpu",
            "--experiments=worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver",
            "with --accelerator instead",
        ),
    ],
)
def test_what_dataflow_would_reject_is_refused_before(name: str, flag: str, message: str):
    with pytest.raises(AcceleratorError, match=message) as error:
        merged(name, flag)
    assert f"--accelerator={name}" in str(error.value)


@pytest.mark.parametrize("name", WITH_DEVICE)
def test_an_image_without_the_accelerators_libraries_is_refused(name: str):
    options = PipelineOptions([flag for flag in dataflow_flags() if flag != IMAGE])
    with pytest.raises(AcceleratorError, match="--sdk_container_image"):
        worker_flags(expand_accelerator(name), options)


def test_a_mesh_stays_within_a_worker():
    check_mesh(expand_accelerator("tpu-v5e-8"), (4, 2))
    check_mesh(expand_accelerator("tpu-v5e-8"), None)
    with pytest.raises(AcceleratorError, match=r"needs 64 devices in one worker, tpu-v5e-8 has 8"):
        check_mesh(expand_accelerator("tpu-v5e-8"), (8, 8))


FLAGS = ["--model_path=random:tiny", "--tasks_file=tasks", "--output_dir=gs://bucket/out"]


def test_the_flag_brings_its_options_and_says_so(capsys: pytest.CaptureFixture[str]):
    config, options = parse_flags([*FLAGS, *dataflow_flags(), "--accelerator=tpu-v5e-8"])
    assert config.accelerator == "tpu-v5e-8"
    assert options.view_as(WorkerOptions).machine_type == "ct5lp-hightpu-8t"
    assert "--worker_machine_type=ct5lp-hightpu-8t" in capsys.readouterr().err


def test_a_contradiction_is_one_line_for_the_user(capsys: pytest.CaptureFixture[str]):
    flags = [*FLAGS, *dataflow_flags("--flexrs_goal=COST_OPTIMIZED"), "--accelerator=tpu-v5e-8"]
    assert main(flags) == 2
    assert capsys.readouterr().err.startswith("error: --flexrs_goal does not go with")


def test_switches_can_be_written_as_a_launcher_writes_them():
    for spelling, value in (("--overwrite", True), ("--overwrite=true", True)):
        assert parse_flags([*FLAGS, spelling])[0].overwrite is value
    assert parse_flags([*FLAGS, "--overwrite=False"])[0].overwrite is False
    assert parse_flags(FLAGS)[0].allow_nonfinite is False


def test_a_launcher_may_add_flags_that_this_beam_does_not_know():
    flags = [*FLAGS, *dataflow_flags("--some_new_flag=1"), "--template_location=gs://bucket/job"]
    assert parse_flags(flags)[0].output_dir == "gs://bucket/out"
    with pytest.raises(ConfigError, match="some_new_flag"):
        parse_flags([*FLAGS, "--some_new_flag=1"])
