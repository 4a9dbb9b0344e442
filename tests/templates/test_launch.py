"""The launch as the Flex Template's launcher does it: parameters to flags, and a job file."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.templates.conftest import Cloud

ROOT = Path(__file__).parents[2]
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


def launch(
    cloud: Cloud, parameters: dict[str, str], **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs the entry module in a process of its own, in the environment that a launcher has."""
    flags = [f"--{name}={value}" for name, value in parameters.items()]
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "templates" / "flex" / "main.py"),
            *flags,
            *cloud.flags(),
            "--job_name=extract",
            "--template_location=gs://bucket/staging/template_launches/1/job_object",
            '--labels={"goog-dataflow-provided-template-type":"flex"}',
        ],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "GOOGLE_APPLICATION_CREDENTIALS": str(cloud.credentials),
            "GOOGLE_CLOUD_PROJECT": "research-project",
            "STORAGE_EMULATOR_HOST": cloud.storage_address,
            **more,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def put_task(cloud: Cloud) -> None:
    task = (ROOT / "examples" / "tasks" / "turn.json").read_bytes()
    cloud.write("tasks/turn.json", task)


def test_a_launch_leaves_the_job_file_and_ends(cloud: Cloud):
    put_task(cloud)
    result = launch(cloud, PARAMETERS)
    assert result.returncode == 0, result.stderr
    job = json.loads(cloud.read("staging/template_launches/1/job_object"))
    assert job["name"] == "extract"
    (pool,) = job["environment"]["workerPools"]
    assert pool["machineType"] == "ct5lp-hightpu-8t"
    assert "--accelerator=tpu-v5e-8 sets" in result.stderr
    assert not cloud.requests, "the launcher, not the program, creates the job"


def test_the_launcher_has_no_use_for_jax(cloud: Cloud):
    put_task(cloud)
    result = launch(cloud, PARAMETERS, PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert "beam_pipeline.pipeline" in imported
    assert "jax" not in imported


def test_a_wrong_parameter_is_one_line_in_the_launchers_log(cloud: Cloud):
    put_task(cloud)
    result = launch(cloud, {**PARAMETERS, "layers_to_extract": "30"})
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: --layers_to_extract: layer 30 does not exist")
