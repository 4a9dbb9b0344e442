"""DAG for Cloud Composer: launch the Flex Template, then check that the dataset is complete.

All values come from the run configuration (`airflow dags trigger --conf`) or from the defaults
below, which the form in the Airflow UI shows. A retry uses the same output folder, so the job
resumes from the finished files.
"""

import datetime
import json
from typing import Any

from airflow.decorators import dag, task
from airflow.models.param import Param
from airflow.providers.google.cloud.hooks.gcs import GCSHook
from airflow.providers.google.cloud.operators.dataflow import DataflowStartFlexTemplateOperator

GCS_PATH = r"^gs://[^/]+/.+"

PARAMS = {
    "project": Param(type="string", description="Project that runs the job and pays for it."),
    "region": Param(
        "us-west4", type="string", description="Region with quota for the accelerator."
    ),
    "template": Param(type="string", pattern=GCS_PATH, description="File of the Flex Template."),
    "image": Param(type="string", description="Image that the template was built with."),
    "service_account": Param(type="string", description="Account that the workers run as."),
    "temp_location": Param(type="string", pattern=GCS_PATH, description="Folder for staging."),
    "model_path": Param(type="string", description="gs:// folder, hub id or random:PRESET."),
    "tasks_file": Param(type="string", description="Files, globs or folders of tasks."),
    "output_dir": Param(type="string", pattern=GCS_PATH, description="Folder of the dataset."),
    "accelerator": Param("tpu-v5e-1", type="string", description="Accelerator of each worker."),
    "num_workers": Param(1, type="integer", minimum=1, description="Fixed number of workers."),
    "parameters": Param(
        {}, type="object", description="Values of additional template parameters by name."
    ),
}


def launch_body(params: dict[str, Any]) -> dict[str, Any]:
    """Return the request of `projects.locations.flexTemplates.launch` for one run."""
    return {
        "launchParameter": {
            "jobName": "extract-activations",
            "containerSpecGcsPath": params["template"],
            "parameters": {
                "model_path": params["model_path"],
                "tasks_file": params["tasks_file"],
                "output_dir": params["output_dir"],
                "accelerator": params["accelerator"],
                "sdk_container_image": params["image"],
                **{name: str(value) for name, value in params["parameters"].items()},
            },
            "environment": {
                "numWorkers": params["num_workers"],
                "serviceAccountEmail": params["service_account"],
                "tempLocation": params["temp_location"],
                "stagingLocation": params["temp_location"],
                # The launcher imports the whole job. The smallest machine needs minutes for this.
                "launcherMachineType": "e2-standard-4",
            },
        }
    }


def check_metadata(metadata: dict[str, Any]) -> str:
    """Return a one-line summary of a complete dataset.

    Raises:
        ValueError: if the dataset is empty, or the counts of its shards do not add up.
    """
    samples = sum(shard["samples"] for shard in metadata["batches"])
    if samples != metadata["total_samples"]:
        raise ValueError(
            f"metadata.json: total_samples is {metadata['total_samples']}, but the shards have "
            f"{samples} samples"
        )
    if not samples:
        raise ValueError("the dataset is empty: see errors/ in the output folder for the reasons")
    return (
        f"{samples} samples, {len(metadata['batches'])} shards, "
        f"layers {metadata['layers_extracted']} of {metadata['model_name']}"
    )


@dag(
    dag_id="extract_activations",
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1),
    catchup=False,
    # A second job in the same output folder would stop the first.
    max_active_runs=1,
    params=PARAMS,
    tags=["dataflow"],
    doc_md=__doc__,
)
def extract_activations() -> None:
    """Launch the job, wait for its end, and check the dataset."""

    @task
    def request(params: dict[str, Any]) -> dict[str, Any]:
        return launch_body(params)

    @task
    def check(params: dict[str, Any]) -> str:
        bucket, _, folder = params["output_dir"].removeprefix("gs://").partition("/")
        stored = GCSHook().download(bucket, f"{folder.rstrip('/')}/metadata.json")
        return check_metadata(json.loads(stored))

    extract = DataflowStartFlexTemplateOperator(
        task_id="extract",
        body=request(),
        project_id="{{ params.project }}",
        location="{{ params.region }}",
        deferrable=True,
        poll_sleep=60,
        retries=2,
        retry_delay=datetime.timedelta(minutes=5),
        # Without a timeout, the trigger would wait forever for a canceled job.
        execution_timeout=datetime.timedelta(days=2),
    )
    extract >> check()


extract_activations()
