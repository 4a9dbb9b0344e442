"""A few kills of `reliability.kill`."""

from pathlib import Path

from reliability.job import Job
from reliability.kill import attempt_kills
from tests.conftest import COMPILED


def test_killed_runs_are_resumed_to_the_same_bytes(tmp_path: Path):
    job = Job(Path(COMPILED.name))
    states = attempt_kills(job, tmp_path, kills=2, workers=1, seed=5)
    assert states.total() >= 2
