"""Inputs from local stand-ins for the Hugging Face hub and for web servers."""

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pyarrow
import pytest
from pyarrow import parquet

from activation_dataset.metadata import InputFile
from tests.conftest import ROOT
from tests.transforms.hub import DATASET, Hub, serve
from transforms.find_inputs import TasksNotFoundError, match_files, resolve_patterns, source_of
from transforms.read_tasks import read_block, read_file
from transforms.split_file import Block, split_file
from transforms.storage import TasksUnreadableError

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
    Hub.revisions = {"main": NEW, "v1": OLD, "refs%2Fconvert%2Fparquet": OLD}
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
    """Read in a new process, since huggingface_hub reads its endpoint when it is imported."""
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
        ("@refs/convert/parquet", "/data", OLD, "old"),
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


def test_two_commits_of_a_dataset_are_refused(hub: str) -> None:
    done = read(hub, f"hf://datasets/{DATASET}/data", f"hf://datasets/{DATASET}@v1/data")
    last = done.stderr.strip().splitlines()[-1]
    assert "TasksNotFoundError" in last, done.stderr
    assert OLD in last
    assert NEW in last


def test_local_folders_that_look_like_commits_keep_their_names() -> None:
    sources = {source_of(f"/data/texts@{each}/a.jsonl", "/data/") for each in (OLD, NEW)}
    assert sources == {f"texts@{OLD}/a.jsonl", f"texts@{NEW}/a.jsonl"}


def test_a_file_of_a_web_server(hub: str) -> None:
    url = f"{hub}/datasets/{DATASET}/resolve/{OLD}/data/a.jsonl"
    (pattern,) = resolve_patterns([url])
    (path,) = match_files(pattern).files
    items = [*read_file(path, source_of(path, pattern.folder))]
    assert [getattr(item, "text", None) for item in items][:1] == ["old"]
    assert items[0].source == "a.jsonl"  # type: ignore[union-attr]
    with pytest.raises(TasksNotFoundError, match="no such file"):
        resolve_patterns([f"{hub}/none.jsonl"])


class WebServer(BaseHTTPRequestHandler):
    """Serve `files` by path, whatever the query, compressed for clients that accept it."""

    files: ClassVar[Mapping[str, bytes]] = {}
    has_ranges: ClassVar[bool] = True
    marks_gzip: ClassVar[bool] = False

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        content = self.files[path]
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found and self.has_ranges:
            first, last = int(found[1]), min(int(found[2]), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        elif self.marks_gzip:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    table = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["old"]}), table)
    files = {
        "/a.jsonl": LINE,
        "/a.jsonl.gz": gzip.compress(LINE),
        "/a.parquet": table.getvalue(),
    }
    monkeypatch.setattr(WebServer, "files", files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), WebServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("query", ["", "?download=true"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_files_of_a_web_server_are_read_as_stored(web: str, name: str, query: str) -> None:
    (pattern,) = resolve_patterns([f"{web}/{name}{query}"])
    (path,) = match_files(pattern).files
    item, file = read_file(path, source_of(path, pattern.folder))
    assert getattr(item, "text", None) == "old"
    assert isinstance(file, InputFile)
    assert file.sha256 == hashlib.sha256(WebServer.files[f"/{name}"]).hexdigest()


def test_a_file_of_a_web_server_is_read_in_blocks(
    web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b"".join(b'{"id": %d, "text": "words"}\n' % number for number in range(50))
    monkeypatch.setattr(WebServer, "files", {"/a.jsonl": lines})
    path = f"{web}/a.jsonl?download=true"
    found = list(split_file(path, "a.jsonl", None, block_bytes=500))
    read = [read_block(each) if isinstance(each, Block) else [each] for each in found]
    assert len(found) == 4
    assert [*itertools.chain(*read)] == [*read_file(path, "a.jsonl")]


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("a.jsonl", "has_ranges", False),
        ("a.parquet", "has_ranges", False),
        ("a.jsonl.gz", "marks_gzip", True),
    ],
)
def test_a_web_server_without_ranges_of_the_stored_bytes_is_named(
    web: str, name: str, setting: str, value: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebServer, setting, value)
    with pytest.raises(TasksUnreadableError, match="ranges"):
        list(read_file(f"{web}/{name}", name))


def test_an_archive_of_a_web_server_is_refused_whatever_its_query(
    web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebServer, "files", {"/a.zip": b"PK"})
    with pytest.raises(TasksNotFoundError, match="extract"):
        resolve_patterns([f"{web}/a.zip?download=true"])


def test_a_store_without_its_library_is_named(tmp_path: Path) -> None:
    with pytest.raises(TasksNotFoundError, match="s3fs"):
        resolve_patterns(["s3://bucket/a.jsonl"])
    with pytest.raises(TasksNotFoundError, match="hf://datasets"):
        resolve_patterns(["ftp://host/a.jsonl"])
