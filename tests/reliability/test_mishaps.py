"""One mishap of `reliability.mishaps`; other tests cover the parts of each mishap."""

import random
from pathlib import Path

import pytest

from reliability.job import Job, digests
from reliability.mishaps import Attempt, two_runs_at_once
from tests.conftest import COMPILED


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    folder = tmp_path_factory.mktemp("expected")
    job = Job(Path(COMPILED.name))
    job.complete(folder / "out")
    return Attempt(job, folder, digests(folder / "out"), random.Random(3))


def test_two_runs_at_once(attempt: Attempt, tmp_path: Path):
    two_runs_at_once(Attempt(attempt.job, tmp_path, attempt.expected, attempt.generator))
