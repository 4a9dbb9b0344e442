"""Some of the mishaps of ``reliability.mishaps``, those that need neither root nor much time."""

import random
from pathlib import Path

import pytest

from reliability.job import Job, digests
from reliability.mishaps import Attempt, folder_removed, two_runs_at_once
from tests.conftest import COMPILED


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    folder = tmp_path_factory.mktemp("expected")
    job = Job(Path(COMPILED.name))
    job.complete(folder / "out")
    return Attempt(job, folder, digests(folder / "out"), random.Random(3))


@pytest.mark.parametrize("mishap", [two_runs_at_once, folder_removed])
def test_a_mishap_is_said_and_mended(attempt: Attempt, tmp_path: Path, mishap):
    mishap(Attempt(attempt.job, tmp_path, attempt.expected, attempt.generator))
