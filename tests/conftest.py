"""What all tests share. It is imported before JAX, so that what it sets counts."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qwen.source import PRESET_FILES
from tests.qwen.checkpoints import SMALL, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]

# Many tests start a job of their own; a program that one has compiled serves all. Each session has
# a new folder, so that no result depends on an earlier session.
COMPILED = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": COMPILED.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Else a look for credentials of a cloud costs half a minute, and TensorFlow talks on stderr.
os.environ.setdefault("NO_GCE_CHECK", "true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> Iterator[None]:
    yield
    COMPILED.cleanup()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three layers, 32 wide, with the shipped tokenizer. Copy it to change it."""
    config = replace(SMALL, vocab_size=1024)
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / "small", config)
    for file in PRESET_FILES.folder.iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def example_tasks() -> Path:
    """The tasks that the project ships."""
    return ROOT / "examples" / "tasks"


@pytest.fixture(scope="session")
def short_tasks(example_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of them, with five test inputs whose prompts have at most 512 tokens each."""
    folder = tmp_path_factory.mktemp("short") / "tasks"
    folder.mkdir()
    for name in ("fall", "mirror", "tile", "turn"):
        shutil.copy(example_tasks / f"{name}.json", folder)
    return folder


@pytest.fixture(scope="session")
def arc_tasks() -> Path:
    """The public ARC-AGI-1 tasks, beside the repository where a person put them."""
    folder = ROOT.parent / "shared" / "data" / "arc_agi_1"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: the tasks of ARC-AGI-1, which the project cannot ship")
    return folder
