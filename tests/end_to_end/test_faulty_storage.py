"""Buckets behind a bad network: one request in ten fails, is cut off or slow, and no byte differs.

Google's library and Beam repeat what failed; these tests are about whether everything is repeated,
and nothing is done twice or by half.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from google.api_core.retry import retry_base, retry_unary
from google.cloud.storage import Bucket

from activation_dataset.checksum import crc32c, to_text
from qwen import model_files
from qwen.checkpoint import SINGLE_FILE
from qwen.source import open_model
from tests.end_to_end.faulty_proxy import FAULTS, FaultyProxy, faulty_proxy
from tests.end_to_end.job import digests, error_of, problems_of, run
from tests.end_to_end.test_cloud_storage import BUCKET, address, bucket, download, upload
from transforms.whole_file import OutputError, WholeFile, read_if_exists, write_whole

__all__ = ["address", "bucket"]

FLAGS = ("--layers_to_extract", "0-1", "--batch_size", "1", "--samples_per_shard", "3")
OUT = f"gs://{BUCKET}/out"
NAMES_THE_MODEL = {"README.md", "metadata.json", "run.json"}

Network = Callable[..., AbstractContextManager[FaultyProxy]]


@pytest.fixture
def network(
    address: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., FaultyProxy]]:
    """Puts a proxy before the bucket for all clients but `bucket`; empties the bucket first."""
    for blob in bucket.list_blobs():
        blob.delete()
    # What waits for a second at first, and for a minute at last, waits for a fiftieth here.
    repeat_faster(monkeypatch, 50, time.monotonic)
    model_files.find_files.cache_clear()
    proxies: list[AbstractContextManager[FaultyProxy]] = []

    def start(share: float = 0.0, seed: int = 0) -> FaultyProxy:
        proxies.append(faulty_proxy(address, share, seed))
        proxy = proxies[-1].__enter__()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.address)
        return proxy

    yield start
    for each in proxies:
        each.__exit__(None, None, None)
    model_files.find_files.cache_clear()


def repeat_faster(
    monkeypatch: pytest.MonkeyPatch, factor: float, clock: Callable[[], float]
) -> None:
    """Makes the library's pauses between repetitions shorter, or its clock faster."""
    quick = SimpleNamespace(sleep=lambda s: time.sleep(s / factor), monotonic=clock)
    for module in (retry_base, retry_unary):
        monkeypatch.setattr(module, "time", quick)


@pytest.fixture(scope="module")
def expected(checkpoint: Path, short_tasks: Path, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("local") / "out"
    run(checkpoint, short_tasks, out, *FLAGS)
    return {name: digest for name, digest in digests(out).items() if name not in NAMES_THE_MODEL}


def assert_dataset(bucket: Bucket, folder: Path, expected: dict[str, str]) -> None:
    fetched = download(bucket, "out", folder)
    assert problems_of(fetched) == []
    assert {k: v for k, v in digests(fetched).items() if k not in NAMES_THE_MODEL} == expected


def test_one_request_in_ten_fails(
    network, bucket: Bucket, checkpoint: Path, short_tasks: Path, tmp_path: Path, expected
):
    upload(short_tasks, bucket, "tasks")
    upload(checkpoint, bucket, "model")
    proxy = network(share=0.1, seed=6)
    run(f"gs://{BUCKET}/model", f"gs://{BUCKET}/tasks/*.json", OUT, *FLAGS)
    assert proxy.faults.keys() == set(FAULTS)
    assert proxy.faults.total() > 15
    assert_dataset(bucket, tmp_path / "fetched", expected)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_large_upload_is_whole_whatever_happens_to_its_parts(
    network, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, fault: str
):
    """The library sends a file in parts of 16 MiB, this one in two."""
    content = random.Random(0).randbytes(17 << 20)
    proxy = network(share=0.5, seed=2)
    monkeypatch.setattr(proxy, "draw", partial(only, proxy, fault))
    path = f"gs://{BUCKET}/large"
    file = WholeFile(path)
    for start in range(0, len(content), 1 << 20):
        file.stream.write(content[start : start + (1 << 20)])
    file.commit(to_text(crc32c(content)))
    assert proxy.faults[fault] > 1
    assert bucket.blob("large").download_as_bytes() == content
    assert [blob.name for blob in bucket.list_blobs()] == ["large"]
    assert read_if_exists(path) == content


def only(proxy: FaultyProxy, fault: str) -> str | None:
    drawn = FaultyProxy.draw(proxy)
    if drawn is None:
        return None
    proxy.faults[fault] += 1
    return fault


@pytest.mark.parametrize("seed", range(3))
def test_a_model_is_fetched_whole(network, bucket: Bucket, checkpoint: Path, seed: int):
    upload(checkpoint, bucket, "model")
    proxy = network(share=0.6, seed=seed)
    source = open_model(f"gs://{BUCKET}/model")
    folder = source.files.weights_folder()
    assert proxy.faults.total() > 1
    for name in ("config.json", "tokenizer.json", SINGLE_FILE):
        assert (folder / name).read_bytes() == (checkpoint / name).read_bytes()
    assert sorted(source.files.weights_crc32c()) == [SINGLE_FILE]


def test_what_is_changed_on_its_way_does_not_get_its_name(network, bucket: Bucket):
    proxy = network()
    forward = proxy.forward

    def flip(method: str, path: str, headers: dict[str, str], body: bytes):
        if method == "PUT":
            body = bytes([body[0] ^ 1]) + body[1:]
        return forward(method, path, headers, body)

    proxy.forward = flip
    with pytest.raises(OutputError, match=r"file: cannot be read or written .*CRC32C"):
        write_whole(f"gs://{BUCKET}/file", b"content")
    assert [blob.name for blob in bucket.list_blobs()] == []


def deleting(bucket: Bucket, proxy: FaultyProxy, name: str, when: str) -> list[str]:
    """Deletes an object whose name has `name` in it right before a request that has `when`.

    Once; the list says what was deleted.
    """
    deleted: list[str] = []

    def before(method: str, path: str, body: bytes) -> None:
        if not deleted and when in unquote(path) + body.decode("latin-1"):
            found = [blob for blob in bucket.list_blobs(prefix="out/") if name in blob.name]
            for blob in found[:1]:
                deleted.append(blob.name)
                blob.delete()

    proxy.before = before
    return deleted


@pytest.mark.parametrize(
    ("name", "when", "message"),
    [
        ("layer_1/activations-00000-of-00002.tfrecord.partial-", "/copyTo/", "cannot be read or"),
        ("metadata.json.partial-", "/copyTo/", "metadata.json: cannot be read or written"),
        (
            "layer_1/activations-00000-of-00002.tfrecord",
            "/o?projection=noAcl&prefix=out/&",
            "1 files were removed or changed since they were written, such as layer_1/activations",
        ),
    ],
    ids=["a layer file", "metadata.json", "a layer file that has its name"],
)
def test_an_object_that_disappears_is_missed_and_the_same_command_completes_the_run(
    capsys,
    network,
    bucket: Bucket,
    checkpoint: Path,
    short_tasks: Path,
    tmp_path: Path,
    expected,
    name: str,
    when: str,
    message: str,
):
    """Between its upload and the moment it gets its name, or before the dataset is complete."""
    proxy = network()
    deleted = deleting(bucket, proxy, name, when)
    assert message in error_of(capsys, checkpoint, short_tasks, OUT, *FLAGS)
    assert len(deleted) == 1
    assert not bucket.blob("out/metadata.json").exists()
    run(checkpoint, short_tasks, OUT, *FLAGS)
    assert_dataset(bucket, tmp_path / "fetched", expected)


def test_a_file_that_has_its_name_stays_committed_though_its_other_name_cannot_be_removed(
    network, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    proxy = network()
    # The two minutes for which the library repeats a request pass in a second.
    repeat_faster(monkeypatch, 120, lambda: 120 * time.monotonic())
    forward = proxy.forward

    def forbid(method: str, path: str, headers: dict[str, str], body: bytes):
        if b"\nDELETE " in body:
            raise ConnectionError("no deletion gets through")
        return forward(method, path, headers, body)

    proxy.forward = forbid
    write_whole(f"gs://{BUCKET}/file", b"content")
    names = [blob.name for blob in bucket.list_blobs()]
    assert names[0] == "file"
    assert [name.partition("-")[0] for name in names[1:]] == ["file.partial"]
