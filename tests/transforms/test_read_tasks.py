import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import zstandard
from apache_beam.testing.util import assert_that, equal_to
from pyarrow import parquet

from activation_dataset.metadata import InputFile
from corpus.task import Document, Pair, Task
from transforms.find_duplicates import FindDuplicates
from transforms.find_inputs import resolve_patterns
from transforms.read_tasks import INPUTS, NOTICES, REJECTED, SKIPPED, ReadTasks, read_file
from transforms.storage import TasksUnreadableError

TASK = {
    "train": [{"input": [[1]], "output": [[2]]}],
    "test": [{"input": [[3]], "output": [[4]]}],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with tasks and other files."""
    monkeypatch.chdir(tmp_path)
    for name in ("tasks/a.json", "tasks/b.jsonl", "tasks/notes.txt", "tasks/deeper/c.json"):
        write(tmp_path / name, json.dumps(TASK).encode())
    return tmp_path


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(path: Path) -> list[Any]:
    return list(read_file(str(path), path.name))


def described(path: Path) -> InputFile:
    content = path.read_bytes()
    return InputFile(path.name, len(content), hashlib.sha256(content).hexdigest())


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "GZ": gzip.compress,
}


@pytest.mark.parametrize("suffix", PACK)
def test_files_are_decompressed_and_digested_as_stored(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.jsonl.{suffix}"
    members = [many_lines(0, 1000), many_lines(1000, 2000)]
    write(path, b"".join(map(PACK[suffix], members)))
    *items, file = read(path)
    assert [item.sample_id(0) for item in items] == [f"{path.name}#{i}/0" for i in range(2000)]
    assert file == described(path)
    assert read(write(path, PACK[suffix](b'{"id": "a", "text": "a"}')))[0].document_id == "a"


@pytest.mark.parametrize("suffix", PACK)
def test_the_records_before_damage_are_read_and_the_damage_reported(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.jsonl.{suffix}"
    first = PACK[suffix](many_lines(0, 1000))
    second = PACK[suffix](many_lines(1000, 2000))
    damaged = second[:60] + bytes(20) + second[80:]
    for content in (first + second[: len(second) // 2], first + damaged, first + b"garbage"):
        *items, last, file = read(write(path, content))
        ids = [item.task_id for item in items if isinstance(item, Task)]
        assert ids[:998] == [str(index) for index in range(998)]
        assert (last.source, last.task_id, last.reason) == (path.name, "", "damaged_archive")
        assert file == described(path)
    last, file = read(write(path, many_lines(0, 9)))
    assert last.reason == "damaged_archive"


def many_lines(start: int, stop: int) -> bytes:
    grids = np.random.default_rng(start).integers(0, 10, (stop - start, 4, 4)).tolist()
    tasks = (TASK | {"id": f"{i}", "more": grid} for i, grid in enumerate(grids, start))
    return b"".join(json.dumps(task).encode() + b"\n" for task in tasks)


@pytest.mark.parametrize("name", ["a.json.gz", "rows.parquet"])
def test_a_failed_read_is_not_a_rejection(here: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """Connection errors have no errno, like the errors of a damaged archive."""

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionError("the connection broke")

    monkeypatch.setattr("transforms.task_file.open_file", lambda path: Broken(b"content"))
    with pytest.raises(TasksUnreadableError, match=rf"{name}: cannot be read .*connection broke"):
        read(here / name)


def test_the_pipeline_reads_every_file_once_and_names_the_rest(here: Path):
    write(here / "tasks" / "broken.json", b'{"train": [')
    write(here / "tasks" / ".cache" / "x.json", b"{}")
    names = b'{"name": "cat", "text": "a"}\n' * 2
    (here / "tasks" / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(names)
    with beam.Pipeline("FnApiRunner") as pipeline:
        patterns = resolve_patterns(["tasks", "tasks/*.json", str(here / "tasks")])
        result = pipeline | ReadTasks(patterns)
        ids = result.items | "Id" >> beam.Map(sample_id)
        expected = ["a.json#a/0", "b.jsonl#line-000001/0", "deeper/c.json#c/0"]
        cafe = "caf\\xe9.jsonl"
        assert_that(ids, equal_to([*expected, f"{cafe}#cat", f"{cafe}#line-000002"]), "items")
        sources = result[REJECTED] | "Source" >> beam.Map(lambda item: item.source)
        assert_that(sources, equal_to(["broken.json"]), "rejected")
        inputs = result[INPUTS] | "Path" >> beam.Map(lambda file: file.path)
        files = ["a.json", "b.jsonl", "broken.json", cafe, "deeper/c.json"]
        assert_that(inputs, equal_to(files), "inputs")
        assert_that(result[SKIPPED], equal_to([".cache/", "notes.txt"]), "skipped")
        notices = result[NOTICES] | "Notice" >> beam.Map(lambda each: (each.source, each.task_id))
        assert_that(notices, equal_to([(cafe, "line-000002")]), "notices")


def test_the_pipeline_reads_the_named_field_alone(here: Path):
    write(here / "texts.jsonl", b'{"id": "a", "text": "x", "body": "y"}\n{"id": "b", "text": "x"}')
    with beam.Pipeline("FnApiRunner") as pipeline:
        result = pipeline | ReadTasks(resolve_patterns(["texts.jsonl"]), "body")
        assert_that(result.items | "Text" >> beam.Map(lambda item: item.text), equal_to(["y"]))
        reasons = result[REJECTED] | "Why" >> beam.Map(lambda item: (item.task_id, item.reason))
        assert_that(reasons, equal_to([("b", "no_text_field")]), "rejected")


def sample_id(item: Task | Document) -> str:
    return item.sample_id if isinstance(item, Document) else item.sample_id(0)


def test_equal_content_is_found_across_files():
    """The order of its pairs, and a missing answer, do not change a task's identity."""
    one, two = Pair(((1,),), ((2,),)), Pair(((3,),), ((4,),))
    query = Pair(((5,),), ((6,),))
    items = [
        Task("a", "a.json", (one, two), (query,)),
        Task("b", "b.json", (two, one), (Pair(query.input, None),)),
        Task("other", "b.json", (one, two), (one,)),
        Document("c", "a.json", "text"),
        Document("d", "b.json", "text"),
        Document("d", "c.json", None, ({"role": "user", "content": "text"},)),
    ]
    with beam.Pipeline("FnApiRunner") as pipeline:
        notices = pipeline | beam.Create(items) | FindDuplicates()
        found = notices | beam.Map(lambda each: (each.source, each.task_id, each.reason))
        expected = [("b.json", "b", "same_content"), ("b.json", "d", "same_content")]
        assert_that(found, equal_to(expected))


def test_tables_are_read_and_digested(tmp_path: Path):
    rows = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"text": ["first"], "more": [1.5]}), rows)
    document, file = read(rows)
    assert (document.text, file) == ("first", described(rows))
    rows.write_bytes(rows.read_bytes()[:-9])
    rejected, file = read(rows)
    assert (rejected.reason, file) == ("bad_table", described(rows))
