"""The same functions for local files and for objects in an emulated bucket."""

from pathlib import Path

import pytest
from google.cloud.storage import Bucket

from activation_dataset.checksum import crc32c, to_text
from tests.end_to_end.emulator import BUCKET, address, bucket
from transforms import storage
from transforms.storage import (
    OutputError,
    delete,
    delete_all,
    join,
    list_files,
    measure_beginning,
    open_file,
    read_if_exists,
    sizes_and_crc32c,
)
from transforms.whole_file import write_whole

__all__ = ["address", "bucket"]

FILES = ("a.json", "b.jsonl", "c[1].json", ".hidden.json", "deep/a.json", "deep/er/b.json")


@pytest.fixture(params=["local", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a folder of `FILES`, each of which holds its name."""
    if request.param == "local":
        folder = str(tmp_path / "files")
    else:
        request.getfixturevalue("bucket")
        folder = f"gs://{BUCKET}/some/files"
    for name in FILES:
        write_whole(join(folder, name), name.encode())
    return folder


def test_a_folder_is_listed_with_the_sizes_of_its_files(root: str):
    assert list_files(root) == {name: len(name) for name in FILES}
    assert list_files(join(root, "deep")) == {"a.json": 11, "er/b.json": 14}
    assert list_files(join(root, "absent")) == {}


def test_a_file_is_read_measured_and_deleted(root: str):
    path = join(root, "deep/a.json")
    assert read_if_exists(path) == b"deep/a.json"
    assert sizes_and_crc32c([path]) == {path: (11, to_text(crc32c(b"deep/a.json")))}
    with open_file(path) as stream:
        assert stream.read(4) == b"deep"
        assert stream.seek(-4, 2) == 7
        assert stream.read() == b"json"
    delete(path)
    delete(path)
    assert (read_if_exists(path), sizes_and_crc32c([path])) == (None, {})


def test_errors_name_the_file_and_say_what_to_check(tmp_path: Path, bucket: Bucket):
    (tmp_path / "file").write_bytes(b"")
    for path, use in (
        ("gs://nowhere/in/file", list_files),
        ("gs://nowhere/in/file", lambda path: write_whole(path, b"")),
        (str(tmp_path), read_if_exists),
        (str(tmp_path / "file" / "inside"), lambda path: write_whole(path, b"")),
    ):
        with pytest.raises(OutputError, match=f"^{path}: .*check that --output_dir"):
            use(path)


@pytest.mark.parametrize("together", [0, 500], ids=["each folder", "one listing"])
def test_files_are_measured(root: str, monkeypatch: pytest.MonkeyPatch, together: int):
    monkeypatch.setattr(storage, "LISTED_TOGETHER", together)
    names = ("a.json", "deep/a.json", "deep/er/b.json")
    expected = {join(root, name): (len(name), to_text(crc32c(name.encode()))) for name in names}
    absent = (join(root, "absent"), join(root, "absent/too"))
    assert sizes_and_crc32c([*expected, *absent]) == expected
    assert sizes_and_crc32c([]) == {}
    assert measure_beginning(join(root, "a")) == {
        join(root, "a.json"): expected[join(root, "a.json")]
    }
    assert measure_beginning(join(root, "absent/a")) == {}


def test_files_are_deleted_whether_they_exist_or_not(root: str):
    delete_all(join(root, name) for name in ("a.json", "absent", "c[1].json", "deep/er/b.json"))
    assert set(list_files(root)) == {"b.jsonl", ".hidden.json", "deep/a.json"}
