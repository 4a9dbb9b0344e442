import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.cloud.storage import Bucket

from activation_dataset.format import is_partial_file
from tests.end_to_end.emulator import BUCKET, address, bucket, names
from transforms.storage import OutputError, join, list_files, read_if_exists
from transforms.upload import UPLOAD_BYTES
from transforms.whole_file import WholeFile, write_whole

__all__ = ["address", "bucket"]


@pytest.fixture(params=["local", "bucket"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the path of a new file in a new folder."""
    if request.param == "local":
        return str(tmp_path / "new" / "folder" / "file.gz")
    request.getfixturevalue("bucket")
    return f"gs://{BUCKET}/new/folder/file.gz"


def files(path: str) -> list[str]:
    """Return the files in the folder of a path."""
    return sorted(list_files(path.rpartition("/")[0]))


@pytest.mark.parametrize("before", [None, b"before"])
def test_a_file_has_its_name_only_when_it_is_whole(path: str, before: bytes | None):
    if before is not None:
        write_whole(path, before)
    file, other = WholeFile(path), WholeFile(path)
    file.stream.write(bytes(UPLOAD_BYTES))
    other.stream.write(b"of another attempt")
    assert read_if_exists(path) == before
    assert all(is_partial_file(name) for name in files(path) if name != "file.gz")
    file.stream.write(b", whole")
    other.commit()
    file.commit()
    assert read_if_exists(path) == bytes(UPLOAD_BYTES) + b", whole"
    assert files(path) == ["file.gz"]


@pytest.mark.parametrize("size", [1, UPLOAD_BYTES + 1])
def test_a_file_that_is_given_up_leaves_no_trace(path: str, size: int):
    write_whole(path, b"before")
    file = WholeFile(path)
    file.stream.write(bytes(size))
    file.discard()
    assert (read_if_exists(path), files(path)) == (b"before", ["file.gz"])


def test_a_file_that_is_forgotten_does_not_get_its_name(path: str):
    """Python closes unreferenced streams, and Google's stream would then complete the upload."""
    file = WholeFile(path)
    file.stream.write(bytes(UPLOAD_BYTES + 1))
    del file
    gc.collect()
    assert read_if_exists(path) is None


def test_the_checksum_of_the_store_is_compared(bucket: Bucket):
    file = WholeFile(f"gs://{BUCKET}/file")
    file.stream.write(b"hello")
    with pytest.raises(OutputError, match=r"/file: .*CRC32C"):
        file.commit("AAAAAA==")
    assert names(bucket) == []


@contextmanager
def room_for_10_bytes() -> Iterator[None]:
    """Limit files of this process to 10 bytes, which looks like a full disk to a writer.

    This is not a fixture, because pytest may write its own report to a file while fixtures are set
    up.
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
