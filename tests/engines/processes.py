"""Processes of engines, workers and jobs. Each leads a session that a test can kill as a whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc

from tests.conftest import COMPILED, ROOT, free_port
from tests.end_to_end.job import flags_of
from tests.engines.conftest import FLAGS, TASKS


def worker_environment(**more: str) -> dict[str, str]:
    """Return the environment of workers that use this interpreter and this checkout."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1",
        **more,
    }


def kill_session(leader: int) -> None:
    """Kill every process of a session with SIGKILL, as the loss of a machine does."""
    for entry in Path("/proc").iterdir():
        with suppress(ValueError, ProcessLookupError):
            if os.getsid(int(entry.name)) == leader:
                os.kill(int(entry.name), signal.SIGKILL)


@contextmanager
def started(*command: str, port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that listens on a port while the block runs."""
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


@contextmanager
def worker_pool(**environment: str) -> Iterator[tuple[str, int]]:
    """A pool that starts one process for each job; yields its address and its process's id."""
    port = free_port()
    command = (sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main")
    with started(*command, f"--service_port={port}", port=port, **environment) as pool:
        yield f"localhost:{port}", pool.pid


@contextmanager
def start_job(out: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """Run a job in the background, and kill it if the block ends first."""
    argv = flags_of("random:tiny", TASKS, out, (*FLAGS, *flags), COMPILED.name)
    job = subprocess.Popen(
        [sys.executable, "-m", "beam_pipeline", *argv],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield job
    finally:
        if job.poll() is None:
            kill_session(job.pid)
            job.communicate()


def complete_job(out: Path, *flags: str) -> None:
    """Run a job, which must succeed."""
    with start_job(out, *flags) as job:
        errors = errors_of(job)
    assert job.returncode == 0, errors


def errors_of(job: subprocess.Popen[str], seconds: float = 240) -> str:
    """Wait for the end of a job, and return its stderr."""
    return job.communicate(timeout=seconds)[1]


def wait_until(
    condition: Callable[[], bool], job: subprocess.Popen[str] | None = None, seconds: float = 180
) -> None:
    """Wait for a moment of a job or a cluster; fail if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        assert job is None or job.poll() is None, job.communicate()[1]
        time.sleep(0.02)


def error_line(errors: str) -> str:
    """Return the one line that explains the end of a job; fail if there is a traceback."""
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    return line
