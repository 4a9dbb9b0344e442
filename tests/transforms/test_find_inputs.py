"""Files that an input selects, on a local disk and in an emulated bucket."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.cloud.storage import Bucket
from pyarrow import ipc

from tests.end_to_end.emulator import BUCKET, address, bucket
from transforms.find_inputs import TasksNotFoundError, common_root, match_files, resolve_patterns
from transforms.storage import join
from transforms.whole_file import write_whole

__all__ = ["address", "bucket"]

Found = tuple[list[str], list[str]]

FILES = (
    "a.json",
    "B.JSONL.GZ",
    "c[1].json",
    "run[2]/d.ndjson",
    "deep/er/e.parquet",
    "deep/er/f.json.zst",
    "deep/g.arrow",
    ".cache/huggingface/h.json",
    ".hidden.json",
    "__MACOSX/a.json",
    "README.md",
    "deep/table.csv",
    "deep/more.tar.gz",
    "dump",
)
READ = [
    *("B.JSONL.GZ", "a.json", "c[1].json", "deep/er/e.parquet", "deep/er/f.json.zst"),
    *("deep/g.arrow", "run[2]/d.ndjson"),
]
LEFT_OUT = [
    *(".cache/", ".hidden.json", "README.md", "__MACOSX/", "deep/more.tar.gz", "deep/table.csv"),
    "dump",
]


def found(*inputs: str) -> Found:
    """Return the files that are read and the files left out, below their common folder."""
    patterns = resolve_patterns(inputs)
    root = common_root(patterns)
    matches = [match_files(each) for each in patterns]
    files = {path.removeprefix(root) for each in matches for path in each.files}
    return sorted(files), sorted({p.removeprefix(root) for each in matches for p in each.skipped})


@pytest.fixture(params=["local", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a folder of `FILES`."""
    if request.param == "local":
        folder = str(tmp_path / "some" / "files")
    else:
        request.getfixturevalue("bucket")
        folder = f"gs://{BUCKET}/some/files"
    for name in FILES:
        write_whole(join(folder, name), b"{}")
    return folder


@pytest.mark.parametrize(
    ("pattern", "files", "skipped"),
    [
        ("", READ, LEFT_OUT),
        ("/", READ, LEFT_OUT),
        ("/*", READ, LEFT_OUT),
        ("/**", READ, LEFT_OUT),
        ("/**/*.json", ["a.json", "c[1].json"], [".cache/", ".hidden.json", "__MACOSX/"]),
        ("/deep/**/*.[pa]*", ["er/e.parquet", "g.arrow"], []),
        ("/a.json", ["a.json"], []),
        ("/c[1].json", ["c[1].json"], []),
        ("/run[2]", ["d.ndjson"], []),
        ("/[!c].json", ["a.json"], []),
        ("/*.json", ["a.json", "c[1].json"], [".hidden.json"]),
        ("/.*.json", [".hidden.json"], []),
        ("/.cache", ["huggingface/h.json"], []),
        ("/de*/*/e.parquet", ["deep/er/e.parquet"], []),
        ("/*/er", ["deep/er/e.parquet", "deep/er/f.json.zst"], [".cache/", "__MACOSX/"]),
        ("/deep/*", ["er/e.parquet", "er/f.json.zst", "g.arrow"], ["more.tar.gz", "table.csv"]),
        ("/d?mp", ["dump"], []),
        ("/dump", ["dump"], []),
    ],
)
def test_an_input_matches_its_data_files_and_the_rest_is_named(
    root: str, pattern: str, files: list[str], skipped: list[str]
):
    assert found(root + pattern) == (files, skipped)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/absent.json", "no such file"),
        ("/README.md", "JSON Lines"),
        ("/deep/table.csv", "convert it"),
        ("/deep/more.tar.gz", "extract it"),
        ("/deep/*.csv", "'table.csv'; convert it"),
        ("/README*", "only 'README.md'"),
    ],
)
def test_a_named_file_that_is_not_read_is_an_error(root: str, path: str, said: str):
    with pytest.raises(TasksNotFoundError) as error:
        resolve_patterns([f"{root}/a.json", root + path])
    assert str(error.value).startswith(f"--tasks_file '{root}{path}'")
    assert said in str(error.value)


@pytest.mark.parametrize("path", ["s3://bucket/a.json", ""])
def test_other_places_are_named(path: str):
    with pytest.raises(TasksNotFoundError, match=f"--tasks_file '{path}'"):
        resolve_patterns([path])


def test_the_output_is_not_an_input(root: str):
    for inputs in (root, f"{root}/**.json*", f"{root}/*"):
        (pattern,) = resolve_patterns([inputs], f"{root}/deep/er/")
        found = match_files(pattern)
        assert not [path for path in (*found.files, *found.skipped) if "/er/" in path]


def test_local_paths_are_absolute_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("tasks/a.json", "tasks/deep/b.json"):
        write_whole(str(tmp_path / name), b"{}")
    assert found("~/tasks/a.json", "./tasks/../tasks/a.json") == (["a.json"], [])
    assert found("./tasks//", "tasks/*/b.json") == (["a.json", "deep/b.json"], [])
    monkeypatch.chdir(tmp_path / "tasks" / "deep")
    assert found("..") == (["a.json", "deep/b.json"], [])


def test_links_pipes_and_folders_named_like_files(tmp_path: Path):
    outside, tasks = tmp_path / "outside", tmp_path / "tasks"
    write_whole(str(outside / "b.json"), b"{}")
    write_whole(str(tasks / "x.json" / "a.json"), b"{}")
    (tasks / "linked").symlink_to(outside)
    (outside / "back").symlink_to(tasks)
    (tasks / "c.json").symlink_to(outside / "b.json")
    os.mkfifo(tasks / "pipe.json")
    expected = ["c.json", "linked/b.json", "x.json/a.json"]
    assert found(str(tasks)) == (expected, ["linked/back/", "pipe.json"])
    assert found(str(tasks / "*.json")) == (["c.json", "x.json/a.json"], ["pipe.json"])
    with pytest.raises(TasksNotFoundError, match="a pipe or a device"):
        resolve_patterns([str(tasks / "pipe.json")])


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def scandir(path: str) -> Any:
        raise PermissionError("Permission denied")

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(TasksNotFoundError, match=r"cannot be listed: .*Permission denied"):
        resolve_patterns([tmp_path])


def table(*texts: str) -> bytes:
    stream, rows = io.BytesIO(), pa.table({"text": list(texts)})
    with ipc.new_stream(stream, rows.schema) as writer:
        writer.write_table(rows)
    return stream.getvalue()


def save(folder: Path | str, *files: str, **state: object) -> None:
    """Write a dataset as `save_to_disk` does, with a minimal description."""
    listed = [{"filename": name} for name in files]
    write_whole(f"{folder}/state.json", json.dumps({"_data_files": listed, **state}).encode())
    write_whole(f"{folder}/dataset_info.json", b'{"features": {}}')
    for name in files:
        write_whole(f"{folder}/{name}", table("a"))


def test_a_saved_dataset_is_what_its_state_lists(tmp_path: Path):
    save(tmp_path / "train", "data-00000-of-00002.arrow", "data-00001-of-00002.arrow")
    save(tmp_path / "old", "data-00000-of-00001.arrow")
    for stale in ("cache-0f0f.arrow", "data-00000-of-00003.arrow"):
        write_whole(f"{tmp_path}/train/{stale}", table("stale"))
    shards = ["train/data-00000-of-00002.arrow", "train/data-00001-of-00002.arrow"]
    left_out = [
        *("train/cache-0f0f.arrow", "train/data-00000-of-00003.arrow", "train/dataset_info.json"),
        "train/state.json",
    ]
    folder = str(tmp_path / "train")
    without = [name.removeprefix("train/") for name in left_out]
    assert found(folder) == ([name.removeprefix("train/") for name in shards], without)
    assert found(f"{folder}/*.arrow")[0] == [name.removeprefix("train/") for name in shards]
    with pytest.raises(TasksNotFoundError, match=r"only 'dataset_info.json', 'state.json'"):
        resolve_patterns([f"{folder}/*.json"])
    write_whole(f"{tmp_path}/dataset_dict.json", b'{"splits": ["train"]}')
    files, skipped = found(str(tmp_path))
    assert files == shards
    assert set(skipped) > {*left_out, "dataset_dict.json", "old/data-00000-of-00001.arrow"}
    assert found(f"{tmp_path}/*/*.arrow")[0] == shards
    # A file that the flag names is read, whatever it is.
    assert found(f"{folder}/cache-0f0f.arrow") == (["cache-0f0f.arrow"], [])


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "flatten_indices"),
        ({"_data_files": [{"filename": "a.arrow", "skip": 1, "take": 2}]}, "flatten_indices"),
        ({"_data_files": [{"filename": "lost.arrow"}]}, "lists 'lost.arrow'"),
    ],
)
def test_a_saved_dataset_that_is_not_its_files_is_refused(
    tmp_path: Path, state: dict[str, Any], said: str
):
    save(tmp_path, "a.arrow", **state)
    with pytest.raises(TasksNotFoundError, match=said):
        resolve_patterns([str(tmp_path)])


def test_a_saved_dataset_in_a_bucket(bucket: Bucket):
    folder = f"gs://{BUCKET}/saved"
    save(f"{folder}/train", "a.arrow")
    write_whole(f"{folder}/train/cache-00.arrow", table("stale"))
    write_whole(f"{folder}/dataset_dict.json", b'{"splits": ["train"]}')
    assert found(folder)[0] == ["train/a.arrow"]


def test_a_split_that_is_missing_is_named(tmp_path: Path):
    save(tmp_path / "train", "a.arrow")
    write_whole(f"{tmp_path}/dataset_dict.json", b'{"splits": ["train", "test"]}')
    with pytest.raises(TasksNotFoundError, match=r"split 'test'"):
        resolve_patterns([str(tmp_path)])


def test_a_cache_of_a_downloaded_dataset_is_left_out(tmp_path: Path):
    for name in ("name-train.arrow", "cache-0f0f.arrow"):
        write_whole(f"{tmp_path}/{name}", table("a"))
    write_whole(f"{tmp_path}/dataset_info.json", b"{}")
    write_whole(f"{tmp_path}/state.json", b'{"train": [], "test": []}')  # A task with that name.
    assert found(str(tmp_path)) == (
        ["name-train.arrow", "state.json"],
        ["cache-0f0f.arrow", "dataset_info.json"],
    )
