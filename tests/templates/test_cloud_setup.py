"""Tests of the setup script with a fake gcloud that logs its calls."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "cloud" / "setup.sh"
GCLOUD = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in *" describe "*) exit "$DESCRIBE" ;; esac
"""


def run(folder: Path, *arguments: str, exists: bool = False) -> tuple[int, list[str]]:
    """Run the script and return its exit status and the calls of gcloud.

    Args:
        folder: folder for the fake gcloud and its log.
        *arguments: arguments of the script.
        exists: True if gcloud reports that every resource exists.
    """
    gcloud = folder / "gcloud"
    gcloud.write_text(GCLOUD, encoding="utf-8")
    gcloud.chmod(0o755)
    log = folder / "log"
    log.touch()
    path = f"{folder}:{os.environ['PATH']}"
    environment = {"PATH": path, "LOG": str(log), "DESCRIBE": "0" if exists else "1"}
    status = subprocess.run(["bash", str(SCRIPT), *arguments], env=environment).returncode
    return status, log.read_text(encoding="utf-8").splitlines()


def test_an_empty_project_gets_everything_once(tmp_path: Path):
    status, calls = run(tmp_path, "research", "us-west4", "gs://data")
    assert status == 0
    assert calls[0].startswith("services enable"), "the next calls need the APIs"
    assert [" ".join(call.split()[:3]) for call in calls if " create " in call] == [
        "storage buckets create",
        "artifacts repositories create",
        "iam service-accounts create",
        "iam service-accounts create",
    ]
    assert any("create gs://data " in call for call in calls)
    status, again = run(tmp_path, "research", "us-west4", "data", exists=True)
    assert status == 0
    assert not [call for call in again[len(calls) :] if " create " in call]


@pytest.mark.parametrize(
    ("account", "roles"),
    [
        ("qwen-activations", {"dataflow.worker", "storage.objectUser", "artifactregistry.reader"}),
        (
            "qwen-activations-build",
            {"logging.logWriter", "storage.objectUser", "artifactregistry.writer"},
        ),
    ],
)
def test_each_account_gets_three_narrow_roles(tmp_path: Path, account: str, roles: set[str]):
    _, calls = run(tmp_path, "research", "us-west4", "data")
    member = f"serviceAccount:{account}@research.iam.gserviceaccount.com "
    grants = [call for call in calls if "add-iam-policy-binding" in call and member in call]
    assert {call.rpartition("--role roles/")[2] for call in grants} == roles
    on_the_project = [call for call in grants if call.startswith("projects")]
    assert len(on_the_project) == 1
