"""Runs on a Flink cluster of two task managers, each with its own worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.job import digests
from tests.engines.flink import FlinkCluster, flink_cluster
from tests.engines.processes import error_line, errors_of, kill_session, start_job, wait_until

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def cluster(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    with flink_cluster(tmp_path_factory.mktemp("flink"), engines) as cluster:
        yield cluster


def test_a_task_manager_lost_in_mid_extraction_costs_no_byte(
    cluster: FlinkCluster, local_digests: dict[str, str], tmp_path: Path
):
    out = tmp_path / "out"
    lost = cluster.task_managers[0]
    with start_job(out, *cluster.flags()) as job:
        wait_until(lambda: any(out.glob("layer_*/*.tfrecord")), job)
        kill_session(lost.pid)
        finished = len(list(out.glob("layer_*/*.tfrecord")))
        cluster.add_task_manager()
        errors = errors_of(job)
    assert job.returncode == 0, errors + cluster.logs()
    assert finished < sum(name.startswith("layer_") for name in local_digests)
    assert cluster.failures()
    assert digests(out) == local_digests


def test_a_job_that_flink_gives_up_says_so_in_one_line(cluster: FlinkCluster, tmp_path: Path):
    with start_job(tmp_path / "out", *cluster.flags(boot="/bin/false")) as job:
        errors = errors_of(job)
    assert job.returncode == 2, errors
    line = error_line(errors)
    assert "FAILED" in line
    assert "exit code 1" in line
