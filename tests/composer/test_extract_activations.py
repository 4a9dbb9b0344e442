"""Tests of the DAG in Airflow, with local fakes of Dataflow and Cloud Storage.

The tests need Airflow, which has a separate environment: `make composer-test`.
"""

import datetime
import json
import re
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from airflow.models import DagBag
from airflow.providers.google.cloud.hooks import dataflow as dataflow_hooks
from google.cloud import dataflow_v1beta3 as dataflow
from google.cloud.dataflow_v1beta3.services.jobs_v1_beta3.transports import (
    JobsV1Beta3GrpcAsyncIOTransport,
)
from google.protobuf import json_format

TEMPLATES = Path(__file__).parents[2] / "templates"
DAGS = TEMPLATES / "composer"
PARAMETERS = json.loads((TEMPLATES / "flex" / "metadata.json").read_text("utf-8"))["parameters"]

CONFIGURATION = {
    "project": "research",
    "region": "us-west4",
    "template": "gs://bucket/templates/qwen-activations.json",
    "image": "us-west4-docker.pkg.dev/research/jobs/qwen-activations:1",
    "service_account": "worker@research.iam.gserviceaccount.com",
    "temp_location": "gs://bucket/temp",
    "model_path": "gs://bucket/models/Qwen2.5-0.5B",
    "tasks_file": "gs://bucket/tasks/*.json",
    "output_dir": "gs://bucket/datasets/first",
    "accelerator": "tpu-v5e-8",
    "num_workers": 8,
    "parameters": {"pooling": "mean", "samples_per_shard": 256},
}
METADATA = {
    "model_name": "Qwen/Qwen2.5-0.5B",
    "layers_extracted": [10, 11],
    "total_samples": 3,
    "batches": [{"samples": 2}, {"samples": 1}],
}


def refused(given: dict[str, str]) -> set[str]:
    """Return the names of unknown, missing and invalid parameters."""
    known = {each["name"]: each for each in PARAMETERS}
    required = {name for name, each in known.items() if not each["isOptional"]}
    wrong = {
        name
        for name in given.keys() & known.keys()
        if not all(re.search(pattern, given[name]) for pattern in known[name].get("regexes", []))
    }
    return (given.keys() - known.keys()) | (required - given.keys()) | wrong


@dataclass
class Cloud:
    """Fake of Dataflow's launch (REST) and job state (gRPC), and of one bucket.

    Attributes:
        states: final state of each job.
        launches: requests in order.
        objects: JSON content of the bucket's objects by name.
    """

    states: list[str]
    launches: list[dict[str, Any]] = field(default_factory=list)
    objects: dict[str, Any] = field(default_factory=dict)

    def launch(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the service's response, or raise ValueError for an invalid request."""
        json_format.ParseDict(body, dataflow.LaunchFlexTemplateRequest.pb()())
        if names := refused(body["launchParameter"]["parameters"]):
            raise ValueError(f"The template parameters are invalid: {names}")
        self.launches.append(body)
        if self.states[len(self.launches) - 1] == "JOB_STATE_DONE":
            self.objects["datasets/first/metadata.json"] = METADATA
        return {"job": self.job(f"job-{len(self.launches)}")}

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the description of a job."""
        state = self.states[int(job_id.removeprefix("job-")) - 1]
        return {"id": job_id, "projectId": "research", "currentState": state}


@pytest.fixture
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    cloud = Cloud(request.param)

    class Handler(BaseHTTPRequestHandler):
        def answer(self, code: int, value: Any) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def do_POST(self) -> None:
            assert self.path.startswith(
                "/v1b3/projects/research/locations/us-west4/flexTemplates:launch"
            )
            length = int(self.headers["Content-Length"])
            try:
                self.answer(200, cloud.launch(json.loads(self.rfile.read(length))))
            except (ValueError, json_format.ParseError) as error:
                self.answer(400, {"error": {"code": 400, "message": str(error)}})

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.partition("/b/bucket/o/")[2].replace("%2F", "/")
            if "/jobs/" in path:
                self.answer(200, cloud.job(path.rpartition("/")[2]))
            elif name in cloud.objects:
                self.answer(200, cloud.objects[name])
            else:
                self.answer(404, {"error": {"code": 404, "message": f"no object {name}"}})

        def log_message(self, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    address = f"http://localhost:{http.server_port}"

    def get_job(job_request: dataflow.GetJobRequest, _: grpc.ServicerContext) -> dataflow.Job:
        job = cloud.job(job_request.job_id)
        return dataflow.Job(json_format.ParseDict(job, dataflow.Job.pb()()))

    rpc = grpc.server(futures.ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(
        get_job, dataflow.GetJobRequest.deserialize, dataflow.Job.serialize
    )
    service = "google.dataflow.v1beta3.JobsV1Beta3"
    rpc.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {"GetJob": handler})]
    )
    rpc_port = rpc.add_insecure_port("localhost:0")
    rpc.start()

    async def initialize_client(_: Any, client_class: Any) -> Any:
        channel = grpc.aio.insecure_channel(f"localhost:{rpc_port}")
        return client_class(transport=JobsV1Beta3GrpcAsyncIOTransport(channel=channel))

    build = partial(dataflow_hooks.build, client_options={"api_endpoint": address})
    monkeypatch.setattr(dataflow_hooks, "build", build)
    monkeypatch.setattr(dataflow_hooks.AsyncDataflowHook, "initialize_client", initialize_client)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv(
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT",
        json.dumps({"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}}),
    )
    yield cloud
    http.shutdown()
    rpc.stop(None)


@pytest.fixture
def dag() -> Any:
    bag = DagBag(str(DAGS), include_examples=False)
    assert not bag.import_errors
    dag = bag.dags["extract_activations"]
    for task in dag.tasks:
        task.retry_delay = datetime.timedelta(0)
    dag.task_dict["extract"].poll_sleep = 0
    return dag


def states_of(run: Any) -> dict[str, str]:
    return {instance.task_id: instance.state for instance in run.get_task_instances()}


@pytest.mark.parametrize("cloud", [["JOB_STATE_DONE"]], indirect=True)
def test_a_run_launches_the_template_and_checks_the_dataset(cloud: Cloud, dag: Any):
    run = dag.test(run_conf=CONFIGURATION)
    assert run.state == "success", states_of(run)
    (body,) = cloud.launches
    launch = body["launchParameter"]
    assert launch["containerSpecGcsPath"] == CONFIGURATION["template"]
    same = ("model_path", "tasks_file", "output_dir", "accelerator")
    assert launch["parameters"] == {
        **{name: CONFIGURATION[name] for name in same},
        "sdk_container_image": CONFIGURATION["image"],
        "pooling": "mean",
        "samples_per_shard": "256",
    }
    assert launch["environment"]["numWorkers"] == 8


@pytest.mark.parametrize("cloud", [["JOB_STATE_FAILED", "JOB_STATE_DONE"]], indirect=True)
def test_a_failed_job_is_repeated_into_the_same_folder(cloud: Cloud, dag: Any):
    run = dag.test(run_conf=CONFIGURATION)
    assert run.state == "success", states_of(run)
    first, second = (body["launchParameter"] for body in cloud.launches)
    assert first["parameters"] == second["parameters"]
    assert first["jobName"] != second["jobName"]


@pytest.mark.parametrize("cloud", [["JOB_STATE_DONE"]], indirect=True)
@pytest.mark.parametrize("parameters", [{"samples_a_shard": 256}, {"samples_per_shard": "many"}])
def test_a_value_that_the_template_refuses_fails_the_run(
    cloud: Cloud, dag: Any, parameters: dict[str, Any]
):
    run = dag.test(run_conf={**CONFIGURATION, "parameters": parameters})
    assert states_of(run)["extract"] == "failed"
    assert cloud.launches == []


@pytest.mark.parametrize("cloud", [["JOB_STATE_FAILED"] * 3], indirect=True)
def test_a_job_that_keeps_failing_fails_the_run(cloud: Cloud, dag: Any):
    run = dag.test(run_conf=CONFIGURATION)
    assert states_of(run) == {"request": "success", "extract": "failed", "check": "upstream_failed"}
    assert len(cloud.launches) == 3


@pytest.mark.parametrize("cloud", [["JOB_STATE_DONE"]], indirect=True)
@pytest.mark.parametrize("damage", [{"total_samples": 4}, {"total_samples": 0, "batches": []}])
def test_a_dataset_that_does_not_add_up_fails_the_run(
    cloud: Cloud, dag: Any, monkeypatch: pytest.MonkeyPatch, damage: dict[str, Any]
):
    for key, value in damage.items():
        monkeypatch.setitem(METADATA, key, value)
    run = dag.test(run_conf=CONFIGURATION)
    assert states_of(run)["check"] == "failed"
