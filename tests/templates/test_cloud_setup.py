"""The set-up script, run against a stand-in for gcloud that writes down what it is asked."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "cloud" / "setup.sh"
GCLOUD = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in *" describe "*) exit "$DESCRIBE" ;; esac
"""


def run(folder: Path, arguments: list[str], exists: bool) -> tuple[int, list[str], str]:
    """Exit status, the calls made to gcloud, and what the script printed."""
    gcloud = folder / "gcloud"
    gcloud.write_text(GCLOUD, encoding="utf-8")
    gcloud.chmod(0o755)
    log = folder / "log"
    log.touch()
    result = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={
            "PATH": f"{folder}:{os.environ['PATH']}",
            "LOG": str(log),
            "DESCRIBE": "0" if exists else "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, log.read_text(encoding="utf-8").splitlines(), result.stdout


@pytest.mark.parametrize("bucket", ["data", "gs://data"])
def test_an_empty_project_gets_everything(tmp_path: Path, bucket: str):
    status, calls, printed = run(tmp_path, ["research", "us-west4", bucket], exists=False)
    assert status == 0
    made = [" ".join(call.split()[:3]) for call in calls if " create " in call]
    assert made == [
        "storage buckets create",
        "artifacts repositories create",
        "iam service-accounts create",
        "iam service-accounts create",
    ]
    (enabled,) = [call for call in calls if call.startswith("services enable")]
    for api in ("artifactregistry", "cloudbuild", "compute", "dataflow", "iam", "storage"):
        assert f" {api}.googleapis.com" in enabled
    assert calls[0] == enabled, "what the next calls need"
    assert "bucket           gs://data\n" in printed


def test_a_second_run_makes_nothing_again(tmp_path: Path):
    status, calls, _ = run(tmp_path, ["research", "us-west4", "data"], exists=True)
    assert status == 0
    assert not [call for call in calls if " create " in call]


@pytest.mark.parametrize(
    ("account", "roles"),
    [
        (
            "qwen-activations",
            {
                "roles/dataflow.worker": "projects",
                "roles/storage.objectUser": "storage",
                "roles/artifactregistry.reader": "artifacts",
            },
        ),
        (
            "qwen-activations-build",
            {
                "roles/logging.logWriter": "projects",
                "roles/storage.objectUser": "storage",
                "roles/artifactregistry.writer": "artifacts",
            },
        ),
    ],
)
def test_each_account_gets_three_narrow_roles(tmp_path: Path, account: str, roles: dict[str, str]):
    _, calls, _ = run(tmp_path, ["research", "us-west4", "data"], exists=False)
    member = f"serviceAccount:{account}@research.iam.gserviceaccount.com "
    grants = [call for call in calls if "add-iam-policy-binding" in call and member in call]
    assert {call.rpartition("--role ")[2]: call.split()[0] for call in grants} == roles


def test_wrong_arguments_are_answered_with_the_usage(tmp_path: Path):
    status, calls, _ = run(tmp_path, ["research"], exists=False)
    assert status == 2
    assert calls == []
