"""Prism, the engine that Beam ships, by both ways in and with a pool of workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tests.conftest import ROOT
from tests.end_to_end.job import digests
from tests.engines.processes import (
    complete_job,
    error_line,
    errors_of,
    free_port,
    kill_session,
    start_job,
    wait_until,
    worker_environment,
)

pytestmark = pytest.mark.engines

TOGETHER = """
import pathlib
import threading
from transforms.extract_activations import _Extract

start, process = threading.Barrier({bundles}), _Extract.process

def process_together(self, element, plan):
    start.wait(timeout=60)
    pathlib.Path({witness!r}).touch()
    yield from process(self, element, plan)

_Extract.process = process_together
"""


@contextmanager
def started(*command: str, port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, cwd=ROOT, env=worker_environment(**environment), start_new_session=True
    )
    try:
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
        yield process
    finally:
        kill_session(process.pid)
        process.wait()


@pytest.fixture
def job_endpoint(engines: Path) -> Iterator[str]:
    port = free_port()
    command = (str(engines / "prism"), "-serve_http=false", f"-job_port={port}")
    with started(*command, port=port):
        yield f"localhost:{port}"


@contextmanager
def worker_pool(**environment: str) -> Iterator[tuple[str, int]]:
    """A pool that starts one process for each job; yields its address and its process's id."""
    port = free_port()
    command = (sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main")
    with started(*command, f"--service_port={port}", port=port, **environment) as pool:
        yield f"localhost:{port}", pool.pid


def portable(job_endpoint: str, environment: str, config: str = "") -> tuple[str, ...]:
    return (
        *("--runner=PortableRunner", f"--job_endpoint={job_endpoint}"),
        *(f"--environment_type={environment}", f"--environment_config={config}"),
    )


def test_prism_that_the_job_starts(engines: Path, local_digests: dict[str, str], tmp_path: Path):
    flags = ("--runner=PrismRunner", f"--prism_location={engines / 'prism'}")
    complete_job(tmp_path / "out", *flags)
    assert digests(tmp_path / "out") == local_digests


def test_prism_that_serves(job_endpoint: str, local_digests: dict[str, str], tmp_path: Path):
    flags = portable(job_endpoint, "LOOPBACK")
    complete_job(tmp_path / "out", *flags)
    assert digests(tmp_path / "out") == local_digests


def test_four_bundles_that_start_together_in_one_process(
    job_endpoint: str, local_digests: dict[str, str], tmp_path: Path
):
    customize = tmp_path / "customize"
    customize.mkdir()
    witness = tmp_path / "four-have-started"
    program = TOGETHER.format(bundles=4, witness=str(witness))
    (customize / "sitecustomize.py").write_text(program, encoding="utf-8")
    with worker_pool(PYTHONPATH=f"{customize}:{ROOT}") as (address, _):
        flags = portable(job_endpoint, "EXTERNAL", address)
        complete_job(tmp_path / "out", *flags)
    assert witness.exists()
    assert digests(tmp_path / "out") == local_digests


def test_a_job_that_loses_its_worker_says_so_and_goes_on_when_it_is_repeated(
    job_endpoint: str, local_digests: dict[str, str], tmp_path: Path
):
    out = tmp_path / "out"
    with worker_pool() as (address, pool):
        flags = portable(job_endpoint, "EXTERNAL", address)
        with start_job(out, *flags) as job:
            wait_until(lambda: any(out.glob("layer_*/*.tfrecord")), job)
            kill_session(pool)
            errors = errors_of(job)
    assert job.returncode == 2
    assert "same command again" in error_line(errors)
    with worker_pool() as (address, _):
        flags = portable(job_endpoint, "EXTERNAL", address)
        complete_job(out, *flags)
    assert digests(out) == local_digests
