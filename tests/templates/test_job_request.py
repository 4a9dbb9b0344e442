"""Tests of the request that DataflowRunner sends to the service, for every accelerator."""

from typing import Any

import pytest
from apache_beam.internal import pickler
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from google.cloud import dataflow_v1beta3
from google.protobuf import json_format

from beam_pipeline.accelerators import ACCELERATORS
from beam_pipeline.command import main
from tests.templates.conftest import Cloud

IMAGE = "us-west4-docker.pkg.dev/research-project/qwen-activations/job:1"


def submit(cloud: Cloud, *flags: str) -> Any:
    """Submit a job and return the `google.dataflow.v1beta3.Job` of the request."""
    cloud.write_task()
    status = main(
        [
            "--model_path=random:tiny",
            "--tasks_file=gs://bucket/tasks",
            "--output_dir=gs://bucket/datasets/first",
            "--layers_to_extract=10-11",
            "--no_auth",
            f"--dataflow_endpoint={cloud.dataflow_address}",
            f"--sdk_container_image={IMAGE}",
            *cloud.flags(),
            *flags,
        ]
    )
    assert status == 0
    (request,) = cloud.requests
    return request


def staged_pipeline(cloud: Cloud) -> Any:
    """Return the newest pipeline graph in the bucket."""
    names = [blob.name for blob in cloud.bucket().list_blobs(prefix="staging/")]
    content = cloud.read([name for name in names if name.endswith("/pipeline.pb")][-1])
    return beam_runner_api_pb2.Pipeline.FromString(content)


def extraction(pipeline: Any) -> Any:
    """Return the unpickled DoFn of the step Extract."""
    (step,) = [
        step
        for step in pipeline.components.transforms.values()
        if step.unique_name.startswith("Extract/")
        and step.spec.urn == common_urns.primitives.PAR_DO.urn
    ]
    payload = beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload)
    return pickler.loads(payload.do_fn.payload)[0]


@pytest.mark.parametrize("name", ACCELERATORS)
def test_the_request_asks_for_one_process_on_the_right_machine(cloud: Cloud, name: str):
    settings = ACCELERATORS[name]
    environment = submit(cloud, f"--accelerator={name}", "--num_workers=8").environment
    (pool,) = environment.worker_pools
    assert pool.machine_type == settings.machine_types[0]
    assert pool.num_workers == 8
    assert pool.disk_size_gb == (0 if name == "cpu" else 100)
    assert pool.num_threads_per_worker == settings.harness_threads
    (container,) = pool.sdk_harness_container_images
    assert container.container_image == IMAGE
    assert "no_use_multiple_sdk_containers" in environment.experiments
    asked = [f"worker_accelerator={settings.worker_accelerator}"]
    assert list(environment.service_options) == (asked if settings.worker_accelerator else [])
    fixed = dataflow_v1beta3.AutoscalingAlgorithm.AUTOSCALING_ALGORITHM_NONE
    assert (pool.autoscaling_settings.algorithm == fixed) == (name != "cpu")

    pipeline = staged_pipeline(cloud)
    for each in pipeline.components.environments.values():
        assert not each.resource_hints
    # The step that starts JAX carries the environment variables for JAX on a worker.
    assert extraction(pipeline)._settings.environment == settings.environment


def test_the_request_is_small_and_has_no_secret(cloud: Cloud, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_a-secret-token")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(cloud.credentials))
    text = json_format.MessageToJson(submit(cloud, "--accelerator=tpu-v5e-8"))
    assert len(text) < 100_000
    blobs = cloud.bucket().list_blobs(prefix="staging/")
    staged = b"".join(cloud.read(blob.name) for blob in blobs)
    for secret in ("hf_a-secret-token", "PRIVATE KEY", "access_token"):
        assert secret.encode() not in text.encode() + staged
