"""Engines that `make engine-test` installed, and the result of a local run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.end_to_end.job import digests, run

TASKS = ROOT / "examples" / "tasks" / "*.json"
# 64 samples in 16 shards leave enough time to lose a worker between the first and the last.
FLAGS = ("--augment=4", "--layers_to_extract=0-1", "--samples_per_shard=4")


@pytest.fixture(scope="session")
def engines() -> Path:
    """Return the folder of the engines that `make engine-test` installs."""
    folder = ROOT / ".engines"
    assert (folder / ".installed").exists(), "make engine-test installs the engines"
    return folder


@pytest.fixture(scope="session")
def local_digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the digests of the dataset that a local run makes with `FLAGS`, by path."""
    out = tmp_path_factory.mktemp("local") / "out"
    run("random:tiny", TASKS, out, *FLAGS)
    return digests(out)
