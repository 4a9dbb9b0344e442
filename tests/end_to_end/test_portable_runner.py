"""Beam's job service and worker pool with two worker processes, compared with a local run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner import fn_runner

from tests.end_to_end.job import digests, problems_of, run
from tests.engines.processes import worker_pool as started_pool

FLAGS = ("--layers_to_extract", "0-1", "--batch_size", "1", "--samples_per_shard", "1")

PYTHON = """#!/bin/sh
export HOME=$(mktemp -d {homes}/worker-XXXX)
exec {python} "$@"
"""


class TwoWorkers(fn_runner.FnApiRunner):
    """Runner with two workers; the service that Beam ships asks for one."""

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)
        self._num_workers = 2


@pytest.fixture
def job_endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setattr(fn_runner, "FnApiRunner", TwoWorkers)
    service = local_job_service.LocalJobServicer(str(tmp_path / "staging"))
    yield f"localhost:{service.start_grpc_server()}"
    service.stop()


@pytest.fixture
def worker_pool(tmp_path: Path) -> Iterator[str]:
    """Yield a pool that starts workers with the first `python` it finds, each with its own home."""
    homes = tmp_path / "homes"
    homes.mkdir()
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON.format(homes=homes, python=sys.executable), encoding="utf-8")
    python.chmod(0o755)
    with started_pool(PATH=f"{python.parent}:{os.environ['PATH']}") as (address, _):
        yield address


def test_two_workers_behind_a_job_service_give_the_bytes_of_a_local_run(
    job_endpoint: str, worker_pool: str, checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    portable = (
        *("--runner", "PortableRunner"),
        *("--job_endpoint", job_endpoint),
        *("--environment_type", "EXTERNAL"),
        *("--environment_config", worker_pool),
        *("--compile_cache", "~/compiled"),
    )
    run(checkpoint, short_tasks, tmp_path / "portable", *FLAGS, *portable)
    workers = [home / "compiled" for home in (tmp_path / "homes").iterdir()]
    assert len(workers) == 2
    for compiled in workers:
        assert list(compiled.iterdir()), "this worker ran no model"

    run(checkpoint, short_tasks, tmp_path / "local", *FLAGS)
    assert problems_of(tmp_path / "portable") == []
    assert digests(tmp_path / "portable") == digests(tmp_path / "local")
