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
    ]
    assert any("dataflow.googleapis.com" in call for call in calls)
    assert "bucket           gs://data\n" in printed


def test_a_second_run_makes_nothing_again(tmp_path: Path):
    status, calls, _ = run(tmp_path, ["research", "us-west4", "data"], exists=True)
    assert status == 0
    assert not [call for call in calls if " create " in call]


def test_the_worker_gets_three_narrow_roles(tmp_path: Path):
    _, calls, _ = run(tmp_path, ["research", "us-west4", "data"], exists=False)
    grants = {
        call.rpartition("--role ")[2]: call for call in calls if "add-iam-policy-binding" in call
    }
    assert {role: call.split()[0] for role, call in grants.items()} == {
        "roles/dataflow.worker": "projects",
        "roles/storage.objectUser": "storage",
        "roles/artifactregistry.reader": "artifacts",
    }
    for call in grants.values():
        assert "serviceAccount:qwen2-activations@research.iam.gserviceaccount.com" in call


def test_wrong_arguments_are_answered_with_the_usage(tmp_path: Path):
    status, calls, _ = run(tmp_path, ["research"], exists=False)
    assert status == 2
    assert calls == []
