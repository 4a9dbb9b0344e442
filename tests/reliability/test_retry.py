"""A retried bundle changes nothing."""

from pathlib import Path

from reliability.job import Job
from reliability.retry import retry_all
from tests.conftest import COMPILED


def test_bundles_that_fail_after_their_work_are_run_again_to_the_same_bytes(
    checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    flags = ("--layers_to_extract", "all", "--samples_per_shard", "2", "--pooling", "none")
    job = Job(Path(COMPILED.name), (str(short_tasks),), str(checkpoint), flags)
    assert retry_all(job, tmp_path) > 10
