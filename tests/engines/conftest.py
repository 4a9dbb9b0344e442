"""The engines that `make engine-test` has fetched, and what a local run gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.end_to_end.job import digests, run

TASKS = ROOT / "examples" / "tasks" / "*.json"
# 64 samples in 16 shards: time enough to lose a worker between the first and the last.
FLAGS = ("--augment=4", "--layers_to_extract=0-1", "--samples_per_shard=4")


@pytest.fixture(scope="session")
def engines() -> Path:
    """Folder of what `make engine-test` installs."""
    folder = ROOT / ".engines"
    assert (folder / ".installed").exists(), "make engine-test installs the engines"
    return folder


@pytest.fixture(scope="session")
def local_digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """File to digest of the dataset that a local run makes with `FLAGS`."""
    out = tmp_path_factory.mktemp("local") / "out"
    run("random:tiny", TASKS, out, *FLAGS)
    return digests(out)
