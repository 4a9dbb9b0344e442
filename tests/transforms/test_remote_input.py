"""Inputs of the Hugging Face hub and of web servers, from stand-ins on this machine."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.transforms.hub import DATASET, Hub, serve
from transforms.find_inputs import TasksNotFoundError, match_files, resolve_patterns, source_of
from transforms.read_tasks import read_file

OLD, NEW = "a" * 40, "b" * 40
LINE = b'{"id": "x", "text": "old"}\n'

READ = """
import json, sys
from transforms.find_inputs import common_root, match_all, resolve_patterns, source_of
from transforms.read_tasks import read_file
patterns = resolve_patterns(sys.argv[1:])
root = common_root(patterns)
found = {}
for path in match_all(patterns).files:
    source = source_of(path, root)
    found[source] = [item.text for item in read_file(path, source) if hasattr(item, "text")]
commits = [dict(each.commits) for each in patterns]
print(json.dumps([found, commits, [each.folder for each in patterns]]))
"""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.revisions = {"main": NEW, "v1": OLD}
    Hub.files = {
        OLD: {"data/a.jsonl": LINE},
        NEW: {"data/a.jsonl": LINE.replace(b"old", b"new"), "README.md": b"# Texts"},
    }
    server = serve()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def read(hub: str, *paths: str) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, since huggingface_hub reads its endpoint when it is imported."""
    return subprocess.run(
        [sys.executable, "-c", READ, *paths],
        env={"HF_ENDPOINT": hub, "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("revision", "rest", "commit", "text"),
    [
        ("", "", NEW, "new"),
        ("", "/data/*.jsonl", NEW, "new"),
        ("@v1", "/data/a.jsonl", OLD, "old"),
        (f"@{OLD}", "/data", OLD, "old"),
    ],
)
def test_a_dataset_of_the_hub_is_read_at_one_commit(
    hub: str, revision: str, rest: str, commit: str, text: str
) -> None:
    done = read(hub, f"hf://datasets/{DATASET}{revision}{rest}")
    assert done.returncode == 0, done.stderr
    found, commits, folders = json.loads(done.stdout)
    assert [*found.values()] == [[text]]
    assert [*found] == ["data/a.jsonl" if not rest else "a.jsonl"]
    assert commits == [{DATASET: commit}]
    assert f"@{commit}" in folders[0]


@pytest.mark.parametrize(
    "path",
    [
        f"hf://datasets/{DATASET}@v9/data",
        "hf://datasets/org/other",
        f"hf://{DATASET}",
        f"hf://datasets/{DATASET}/none.jsonl",
    ],
)
def test_a_path_that_the_hub_does_not_have_is_named(hub: str, path: str) -> None:
    done = read(hub, path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "TasksNotFoundError" in last, done.stderr
    assert f"--tasks_file {path!r}" in last


def test_a_file_of_a_web_server(hub: str) -> None:
    url = f"{hub}/datasets/{DATASET}/resolve/{OLD}/data/a.jsonl"
    (pattern,) = resolve_patterns([url])
    (path,) = match_files(pattern).files
    items = [*read_file(path, source_of(path, pattern.folder))]
    assert [getattr(item, "text", None) for item in items][:1] == ["old"]
    assert items[0].source == "a.jsonl"  # type: ignore[union-attr]
    with pytest.raises(TasksNotFoundError, match="no such file"):
        resolve_patterns([f"{hub}/none.jsonl"])


def test_a_store_without_its_library_is_named(tmp_path: Path) -> None:
    with pytest.raises(TasksNotFoundError, match="s3fs"):
        resolve_patterns(["s3://bucket/a.jsonl"])
    with pytest.raises(TasksNotFoundError, match="hf://datasets"):
        resolve_patterns(["ftp://host/a.jsonl"])
