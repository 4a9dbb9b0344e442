import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from pyarrow import ipc, parquet

from activation_dataset.metadata import InputFile
from transforms.read_tasks import (
    INPUTS,
    REJECTED,
    ReadTasks,
    TasksNotFoundError,
    TasksUnreadableError,
    common_root,
    match_files,
    read_file,
    resolve_patterns,
)

TASK = {
    "train": [{"input": [[1]], "output": [[2]]}],
    "test": [{"input": [[3]], "output": [[4]]}],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tasks and other files."""
    monkeypatch.chdir(tmp_path)
    for name in ("tasks/a.json", "tasks/b.jsonl", "tasks/notes.txt", "tasks/deeper/c.json"):
        write(tmp_path / name, json.dumps(TASK).encode())
    return tmp_path


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(*inputs: str) -> list[str]:
    patterns = resolve_patterns(inputs)
    root = common_root(patterns)
    paths = {path for pattern in patterns for path in match_files(pattern)}
    return sorted(path.removeprefix(root) for path in paths)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["tasks/a.json"], ["a.json"]),
        (["tasks"], ["a.json", "b.jsonl"]),
        (["./tasks//"], ["a.json", "b.jsonl"]),
        (["~/tasks/a.json"], ["a.json"]),
        (["tasks/**.json"], ["a.json", "deeper/c.json"]),
        (["tasks/*.txt"], ["notes.txt"]),
        (["tasks/a.json", "tasks/dee*/c.json"], ["a.json", "deeper/c.json"]),
        (["tasks/a.json", "./tasks/../tasks/a.json"], ["a.json"]),
    ],
)
def test_files_are_found_and_named_below_their_common_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], expected: list[str]
):
    monkeypatch.setenv("HOME", str(here))
    assert found(*inputs) == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent.json", r"no such file. Give a file, a folder, a glob"),
        ("empty/", r"the folder holds no file of tasks: .json, .jsonl, .p"),
        ("s3://bucket/a.json", r"must be local or gs://"),
        ("", r"no such file"),
    ],
)
def test_an_input_that_matches_nothing_is_named(here: Path, path: str, message: str):
    (here / "empty" / "folder.json").mkdir(parents=True)
    with pytest.raises(TasksNotFoundError, match=f"--tasks_file '{path}': {message}"):
        resolve_patterns(["tasks/a.json", path])


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def scandir(path: str) -> Any:
        raise PermissionError("Permission denied")

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(TasksNotFoundError, match=r"cannot be listed: .*Permission denied"):
        resolve_patterns([str(tmp_path)])


def read(path: Path) -> list[Any]:
    return list(read_file(str(path), path.name))


def described(path: Path) -> InputFile:
    content = path.read_bytes()
    return InputFile(path.name, len(content), hashlib.sha256(content).hexdigest())


PACKED: dict[str, Any] = {"gz": gzip, "bz2": bz2, "xz": lzma}


@pytest.mark.parametrize("suffix", PACKED)
def test_files_are_decompressed_and_digested_as_stored_or_are_dead_letters(here: Path, suffix: str):
    tasks = b"".join(json.dumps(TASK | {"id": f"{i}"}).encode() + b"\n" for i in range(3000))
    packed = PACKED[suffix].compress(tasks)
    path = write(here / "packed" / f"a.jsonl.{suffix}", packed)
    assert found("packed") == [path.name]
    *items, file = read(path)
    assert [item.sample_id(0) for item in items] == [f"{path.name}#{i}/0" for i in range(3000)]
    assert file == described(path)
    for damaged in (tasks, packed[:-1], packed[:60] + bytes(20) + packed[80:]):
        *_, last, file = read(write(path, damaged))
        assert (last.source, last.task_id, last.reason) == (path.name, "", "damaged_archive")
        assert last.detail.startswith(f"{path.name}: cannot be decompressed (")
        assert file == described(path)


@pytest.mark.parametrize("name", ["a.json.gz", "rows.parquet"])
def test_a_read_that_fails_is_no_dead_letter(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    """Errors of a connection have no number, like those of a damaged archive."""

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionError("the connection broke")

    monkeypatch.setattr("transforms.read_tasks.open_file", lambda path: Broken(b"content"))
    with pytest.raises(TasksUnreadableError, match=rf"{name}: cannot be read .*connection broke"):
        read(here / name)


def test_the_pipeline_reads_every_file_once(here: Path):
    write(here / "tasks" / "broken.json", b'{"train": [')
    with beam.Pipeline("FnApiRunner") as pipeline:
        patterns = resolve_patterns(["tasks", "tasks/*.json", str(here / "tasks")])
        result = pipeline | ReadTasks(patterns)
        ids = result.items | "Id" >> beam.Map(lambda item: item.sample_id(0))
        assert_that(ids, equal_to(["a.json#a/0", "b.jsonl#line-000001/0"]), "items")
        sources = result[REJECTED] | "Source" >> beam.Map(lambda item: item.source)
        assert_that(sources, equal_to(["broken.json"]), "rejected")
        inputs = result[INPUTS] | "Path" >> beam.Map(lambda file: file.path)
        assert_that(inputs, equal_to(["a.json", "b.jsonl", "broken.json"]), "inputs")


def test_the_pipeline_reads_the_named_field_alone(here: Path):
    write(here / "texts.jsonl", b'{"id": "a", "text": "x", "body": "y"}\n{"id": "b", "text": "x"}')
    with beam.Pipeline("FnApiRunner") as pipeline:
        result = pipeline | ReadTasks(resolve_patterns(["texts.jsonl"]), "body")
        assert_that(result.items | "Text" >> beam.Map(lambda item: item.text), equal_to(["y"]))
        reasons = result[REJECTED] | "Why" >> beam.Map(lambda item: (item.task_id, item.reason))
        assert_that(reasons, equal_to([("b", "no_text_field")]), "rejected")


def saved_dataset(folder: Path) -> Path:
    """A folder as Hugging Face saves a dataset."""
    rows = pa.table({"id": ["a", "b"], "text": ["first", "second"]})
    stream = io.BytesIO()
    with ipc.new_stream(stream, rows.schema) as writer:
        writer.write_table(rows)
    write(folder / "data-00000-of-00001.arrow", stream.getvalue())
    write(folder / "dataset_info.json", b'{"features": {}}')
    write(folder / "state.json", b'{"_data_files": []}')
    return folder


def test_a_saved_dataset_is_read_without_its_description(tmp_path: Path):
    folder = saved_dataset(tmp_path / "all" / "train")
    assert found(str(folder)) == ["data-00000-of-00001.arrow"]
    *documents, _ = read(folder / "data-00000-of-00001.arrow")
    assert [each.text for each in documents] == ["first", "second"]
    assert found(str(folder / "*.json")) == ["dataset_info.json", "state.json"]
    write(tmp_path / "all" / "dataset_dict.json", b'{"splits": ["train"]}')
    with pytest.raises(TasksNotFoundError, match=r"no file of tasks: .* are not searched"):
        resolve_patterns([str(tmp_path / "all")])
    assert found(str(tmp_path / "all" / "*" / "*.arrow")) == ["train/data-00000-of-00001.arrow"]


def test_tables_are_read_and_digested(tmp_path: Path):
    rows = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"text": ["first"], "more": [1.5]}), rows)
    document, file = read(rows)
    assert (document.text, file) == ("first", described(rows))
    rows.write_bytes(rows.read_bytes()[:-9])
    rejected, file = read(rows)
    assert (rejected.reason, file) == ("bad_table", described(rows))
