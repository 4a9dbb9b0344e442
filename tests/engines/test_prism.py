"""Runs on Prism, the engine that Beam ships, by both of its flags and with a pool of workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, free_port
from tests.end_to_end.job import digests
from tests.engines.processes import (
    complete_job,
    error_line,
    errors_of,
    kill_session,
    start_job,
    started,
    wait_until,
    worker_pool,
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


@pytest.fixture
def job_endpoint(engines: Path) -> Iterator[str]:
    port = free_port()
    command = (str(engines / "prism"), "-serve_http=false", f"-job_port={port}")
    with started(*command, port=port):
        yield f"localhost:{port}"


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
