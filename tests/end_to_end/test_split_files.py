"""Large files read as several elements of the graph, with the dataset of a single element."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.end_to_end.job import digests, error_of, problems_of, rejections, run
from transforms.read_tasks import ReadTasks
from transforms.task_file import TaskFile

FLAGS = ("--layers_to_extract", "0", "--samples_per_shard", "16")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Return a folder with a file of lines and a file of rows, in which ids and names repeat."""
    folder = tmp_path / "texts"
    folder.mkdir()
    values = [{"id": f"{number % 25}", "text": f"words {number}"} for number in range(30)]
    names = [{"name": "cat", "text": f"more {number}"} for number in range(5)]
    lines = [json.dumps(each) for each in [*values, *names]]
    lines[20] = "{"
    (folder / "a.jsonl").write_text("\n".join(lines))
    parquet.write_table(pa.Table.from_pylist(values), folder / "b.parquet", row_group_size=7)
    return folder


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(ReadTasks, block_bytes=100)
    monkeypatch.setattr("beam_pipeline.pipeline.ReadTasks", small)


def test_blocks_give_the_dataset_of_the_whole_files(
    checkpoint: Path, texts: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    run(checkpoint, texts, tmp_path / "whole", *FLAGS)
    request.getfixturevalue("in_blocks")
    workers = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")
    run(checkpoint, texts, tmp_path / "blocks", *FLAGS, *workers)
    assert problems_of(tmp_path / "blocks") == []
    reasons = Counter(each["reason"] for each in rejections(tmp_path / "blocks"))
    assert reasons == {"duplicate_id": 10, "truncated_json": 1}
    assert digests(tmp_path / "blocks") == digests(tmp_path / "whole")


def test_a_file_that_changes_meanwhile_leaves_no_dataset(
    checkpoint: Path,
    texts: Path,
    tmp_path: Path,
    in_blocks: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    path = texts / "a.jsonl"
    digest_rest = TaskFile.digest_rest

    def then_change(file: TaskFile, source: str) -> object:
        """Change a text of the file right after the split."""
        found = digest_rest(file, source)
        if source == path.name:
            path.write_bytes(path.read_bytes().replace(b"words 7", b"WORDS 7"))
        return found

    monkeypatch.setattr(TaskFile, "digest_rest", then_change)
    error = error_of(capsys, checkpoint, texts, tmp_path / "out", *FLAGS)
    assert f"{path}: changed since" in error
    assert not (tmp_path / "out" / "metadata.json").exists()
