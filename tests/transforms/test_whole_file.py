import gc
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.cloud.storage import Bucket

from activation_dataset.format import is_partial_file
from tests.end_to_end.emulator import BUCKET, address, bucket, names
from transforms.storage import OutputError, join, list_files, read_if_exists
from transforms.whole_file import UPLOAD_BYTES, WholeFile, write_whole

__all__ = ["address", "bucket"]


@pytest.fixture(params=["local", "bucket"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A file that does not exist, in a folder that does not exist either."""
    if request.param == "local":
        return str(tmp_path / "new" / "folder" / "file.gz")
    request.getfixturevalue("bucket")
    return f"gs://{BUCKET}/new/folder/file.gz"


def files(path: str) -> list[str]:
    """The files that are next to a path."""
    return sorted(list_files(path.rpartition("/")[0]))


def test_a_file_has_its_name_only_when_it_is_whole(path: str):
    file = WholeFile(path)
    file.stream.write(bytes(UPLOAD_BYTES))
    assert read_if_exists(path) is None
    assert all(map(is_partial_file, files(path)))
    file.stream.write(b", whole")
    file.commit()
    assert read_if_exists(path) == bytes(UPLOAD_BYTES) + b", whole"
    assert files(path) == ["file.gz"]


def test_a_file_replaces_the_one_before_it_at_once(path: str):
    write_whole(path, b"before")
    file = WholeFile(path)
    file.stream.write(b"after")
    assert read_if_exists(path) == b"before"
    file.commit()
    assert read_if_exists(path) == b"after"


@pytest.mark.parametrize("size", [1, UPLOAD_BYTES + 1])
def test_a_file_that_is_given_up_leaves_no_trace(path: str, size: int):
    write_whole(path, b"before")
    file = WholeFile(path)
    file.stream.write(bytes(size))
    file.discard()
    file.discard()
    assert (read_if_exists(path), files(path)) == (b"before", ["file.gz"])


@pytest.mark.parametrize("size", [1, UPLOAD_BYTES + 1])
def test_a_file_that_is_forgotten_does_not_get_its_name(path: str, size: int):
    """Python closes a stream that nobody uses, and Google's would complete the upload then."""
    file = WholeFile(path)
    file.stream.write(bytes(size))
    del file
    gc.collect()
    assert read_if_exists(path) is None


def test_two_attempts_at_a_file_do_not_meet(path: str):
    first, second = WholeFile(path), WholeFile(path)
    for file in (first, second):
        file.stream.write(b"the same")
    second.commit()
    first.commit()
    assert (read_if_exists(path), files(path)) == (b"the same", ["file.gz"])


def test_a_claim_that_is_lost_leaves_the_file_as_it_was(path: str):
    def refuse() -> None:
        raise PermissionError("lost")

    write_whole(path, b"before")
    with pytest.raises(PermissionError, match="lost"):
        write_whole(path, b"after", refuse)
    assert (read_if_exists(path), files(path)) == (b"before", ["file.gz"])


def test_the_checksum_of_the_store_is_compared(bucket: Bucket):
    file = WholeFile(f"gs://{BUCKET}/file")
    file.stream.write(b"hello")
    with pytest.raises(OutputError, match=r"file: .*stored CRC32C mnG7TA==, sent AAAAAA=="):
        file.commit("AAAAAA==")
    assert names(bucket) == []


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path):
    (tmp_path / "file" / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"file: cannot be read or written"):
        write_whole(str(tmp_path / "file"), b"content")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


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
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, size: int):
    path = join(str(tmp_path), "file")
    expected = pytest.raises(OutputError, match=f"^{path}: .*File too large.*has room")
    with expected, room_for_10_bytes():
        write_whole(path, bytes(size))
    assert files(path) == []


def test_a_process_that_dies_leaves_no_file(tmp_path: Path):
    path = join(str(tmp_path), "file")
    program = (
        "import os, sys; from transforms.whole_file import WholeFile\n"
        "file = WholeFile(sys.argv[1]); file.stream.write(b'half'); file.stream.flush()\n"
        "os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", program, path], check=False)
    assert [is_partial_file(name) for name in files(path)] == [True]
