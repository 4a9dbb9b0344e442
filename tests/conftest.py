"""Fixtures and settings of all tests. pytest imports this file before JAX reads the settings."""

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.qwen.checkpoints import SMALL, add_tokenizer, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]

# Many tests start their own job, and all share one cache: pytest's process makes it, and its
# workers inherit the variable. Each session has a new cache, so no result depends on another one.
COMPILED: tempfile.TemporaryDirectory[str] | SimpleNamespace
if "PYTEST_XDIST_WORKER" in os.environ:
    COMPILED = SimpleNamespace(name=os.environ["JAX_COMPILATION_CACHE_DIR"])
else:
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Without this variable, the search for cloud credentials takes half a minute.
os.environ.setdefault("NO_GCE_CHECK", "true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MAY_BE_MISSING = re.compile("AMX|ARC-AGI|AVX|Chromium|GPU|processor|root")
"""Reasons that may skip a test in CI: hardware, data without a license to ship, a browser."""


def free_port() -> int:
    """Return a free port on localhost."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip in CI into a failure, unless CI may lack what the test needs."""
    if not (os.environ.get("CI") and report.skipped and isinstance(report.longrepr, tuple)):
        return
    reason = str(report.longrepr[2])
    if not hasattr(report, "wasxfail") and not MAY_BE_MISSING.search(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which must have what the test needs: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def pytest_unconfigure() -> None:
    if isinstance(COMPILED, tempfile.TemporaryDirectory):
        COMPILED.cleanup()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of three layers, 32 wide, with the shipped tokenizer.

    A test that changes the checkpoint must copy it.
    """
    config = replace(SMALL, vocab_size=1024)
    return add_tokenizer(write_checkpoint(tmp_path_factory.mktemp("models") / "small", config))


@pytest.fixture(scope="session")
def example_tasks() -> Path:
    """Return the folder of the shipped tasks."""
    return ROOT / "examples" / "tasks"


@pytest.fixture(scope="session")
def short_tasks(example_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return four shipped tasks with five test inputs of at most 512 tokens each."""
    folder = tmp_path_factory.mktemp("short") / "tasks"
    folder.mkdir()
    for name in ("fall", "mirror", "tile", "turn"):
        shutil.copy(example_tasks / f"{name}.json", folder)
    return folder


@pytest.fixture(scope="session")
def arc_tasks() -> Path:
    """Return the public ARC-AGI-1 tasks, if `shared/` next to the repository has them."""
    folder = ROOT.parent / "shared" / "data" / "arc_agi_1"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: the tasks of ARC-AGI-1, which the project cannot ship")
    return folder
