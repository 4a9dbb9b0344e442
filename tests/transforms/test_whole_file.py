import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from activation_dataset.format import is_partial_file
from transforms.whole_file import (
    OutputError,
    WholeFile,
    join,
    read_if_exists,
    store_errors,
    write_whole,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "new" / "folder" / "file")


def files(path: str) -> list[str]:
    return sorted(file.name for file in Path(path).parent.iterdir())


def test_a_file_has_its_name_only_when_it_is_whole(path: str):
    file = WholeFile(path)
    file.stream.write(b"half")
    assert read_if_exists(path) is None
    assert [is_partial_file(name) for name in files(path)] == [True]
    file.stream.write(b", whole")
    file.commit()
    assert read_if_exists(path) == b"half, whole"
    assert files(path) == ["file"]


def test_a_file_replaces_the_one_before_it_at_once(path: str):
    write_whole(path, b"before")
    file = WholeFile(path)
    file.stream.write(b"after")
    assert read_if_exists(path) == b"before"
    file.commit()
    assert read_if_exists(path) == b"after"


def test_what_is_discarded_leaves_no_trace(path: str):
    write_whole(path, b"before")
    file = WholeFile(path)
    file.stream.write(b"after")
    file.discard()
    assert read_if_exists(path) == b"before"
    assert files(path) == ["file"]
    file.discard()


def test_two_attempts_at_a_file_do_not_meet(path: str):
    first, second = WholeFile(path), WholeFile(path)
    for file in (first, second):
        file.stream.write(b"the same")
    second.commit()
    first.commit()
    assert read_if_exists(path) == b"the same"
    assert files(path) == ["file"]


def test_a_suffix_does_not_make_a_file_compressed(path: str):
    write_whole(path + ".gz", b"as it is")
    assert Path(path + ".gz").read_bytes() == b"as it is"
    assert read_if_exists(path + ".gz") == b"as it is"


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    path = str(tmp_path / "file" / "out" / "run.json")
    with pytest.raises(OutputError, match=f"^{path}: .*Not a directory.*check that --output_dir"):
        write_whole(path, b"")
    assert read_if_exists(path) is None


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path):
    (tmp_path / "file" / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"file: cannot be read or written"):
        write_whole(str(tmp_path / "file"), b"content")
    assert files(str(tmp_path / "file")) == ["file"]


@contextmanager
def room_for_10_bytes() -> Iterator[None]:
    """Files of this process cannot grow beyond 10 bytes: a full disk, as far as a writer sees.

    Not a fixture: the test runner reports while those are set up, and may do so into a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 100_000], ids=["on closing", "on writing"])
def test_a_full_disk_is_said_and_leaves_nothing(path: str, size: int):
    expected = pytest.raises(OutputError, match=f"^{path}: .*File too large.*has room")
    with expected, room_for_10_bytes():
        write_whole(path, bytes(size))
    assert files(path) == []


def test_a_process_that_dies_leaves_no_file(path: str):
    program = (
        "import os, sys; from transforms.whole_file import WholeFile\n"
        "file = WholeFile(sys.argv[1]); file.stream.write(b'half'); file.stream.flush()\n"
        "os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", program, path], check=False)
    assert read_if_exists(path) is None
    assert [is_partial_file(name) for name in files(path)] == [True]


def test_errors_that_are_not_of_the_store_pass():
    with pytest.raises(ZeroDivisionError), store_errors("path"):
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    ("folder", "parts", "joined"),
    [
        ("out", ["a"], "out/a"),
        ("/out", ["layer_1/a"], "/out/layer_1/a"),
        ("gs://bucket", ["layer_1/a"], "gs://bucket/layer_1/a"),
        ("gs://bucket/out", ["errors", "a"], "gs://bucket/out/errors/a"),
    ],
)
def test_paths_are_joined_where_they_lie(folder: str, parts: list[str], joined: str):
    assert join(folder, *parts) == joined
