"""Tests of a launch with the environment and arguments of the Flex Template's launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.templates.conftest import Cloud

ROOT = Path(__file__).parents[2]
JOB_FILE = "staging/template_launches/1/job_object"
PARAMETERS = {
    "model_path": "random:tiny",
    "tasks_file": "gs://bucket/tasks/*.json",
    "output_dir": "gs://bucket/datasets/launched",
    "layers_to_extract": "10 11 12",
    "pooling": "mean",
    "overwrite": "true",
    "accelerator": "tpu-v5e-8",
    "sdk_container_image": "us-west4-docker.pkg.dev/research-project/qwen-activations/job:1",
}


def launch(cloud: Cloud, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point in a process with the environment of the launcher."""
    cloud.write_task()
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "templates" / "flex" / "main.py"),
            *(f"--{name}={value}" for name, value in {**PARAMETERS, **changes}.items()),
            *cloud.flags(),
            "--job_name=extract",
            f"--template_location=gs://bucket/{JOB_FILE}",
            '--labels={"goog-dataflow-provided-template-type":"flex"}',
        ],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "GOOGLE_APPLICATION_CREDENTIALS": str(cloud.credentials),
            "GOOGLE_CLOUD_PROJECT": "research-project",
            "STORAGE_EMULATOR_HOST": cloud.storage_address,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_launch_writes_the_job_file_and_creates_no_job(cloud: Cloud):
    result = launch(cloud)
    assert result.returncode == 0, result.stderr
    job = json.loads(cloud.read(JOB_FILE))
    assert job["name"] == "extract"
    (pool,) = job["environment"]["workerPools"]
    assert pool["machineType"] == "ct5lp-hightpu-8t"
    assert "--accelerator=tpu-v5e-8 sets" in result.stderr
    assert not cloud.requests


def test_a_wrong_parameter_is_one_line_in_the_launchers_log(cloud: Cloud):
    result = launch(cloud, layers_to_extract="30")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: --layers_to_extract: layer 30")
