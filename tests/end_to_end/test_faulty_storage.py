"""Buckets behind a bad network: one request in ten fails, is cut off or slow, and no byte differs.

Google's library repeats failed requests. These tests are about whether everything is repeated, and
nothing is done twice or by half.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from google.api_core.retry import retry_base, retry_unary
from google.cloud.storage import Bucket

from activation_dataset.checksum import crc32c, to_text
from qwen.checkpoint import SINGLE_FILE
from qwen.source import open_model
from tests.end_to_end.emulator import BUCKET, address, bucket, download, names, upload
from tests.end_to_end.faulty_proxy import FAULTS, FaultyProxy, faulty_proxy
from tests.end_to_end.job import digests, error_of, problems_of, run
from transforms.storage import OutputError, read_if_exists
from transforms.whole_file import WholeFile, write_whole

__all__ = ["address", "bucket"]

FLAGS = ("--layers_to_extract", "0-1", "--batch_size", "1", "--samples_per_shard", "3")
OUT = f"gs://{BUCKET}/out"
NAMES_THE_MODEL = {"README.md", "metadata.json", "run.json"}

Network = Callable[..., FaultyProxy]


@pytest.fixture
def network(address: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Puts a proxy before the bucket for all clients but `bucket`."""
    # A pause of a second between repetitions takes a fiftieth of one here.
    quick = SimpleNamespace(sleep=lambda s: time.sleep(s / 50), monotonic=time.monotonic)
    for module in (retry_base, retry_unary):
        monkeypatch.setattr(module, "time", quick)
    with ExitStack() as stack:

        def start(share: float = 0.0, seed: int = 0) -> FaultyProxy:
            proxy = stack.enter_context(faulty_proxy(address, share, seed))
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.address)
            return proxy

        yield start


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
    network: Network, bucket: Bucket, checkpoint: Path, short_tasks: Path, tmp_path: Path, expected
):
    upload(short_tasks, bucket, "tasks")
    upload(checkpoint, bucket, "faulty-model")
    proxy = network(share=0.1, seed=6)
    run(f"gs://{BUCKET}/faulty-model", f"gs://{BUCKET}/tasks/*.json", OUT, *FLAGS)
    assert proxy.faults.keys() == set(FAULTS)
    assert proxy.faults.total() > 8
    assert_dataset(bucket, tmp_path / "fetched", expected)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_large_upload_is_whole_whatever_happens_to_its_parts(
    network: Network, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, fault: str
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
    assert names(bucket) == ["large"]
    assert bucket.blob("large").download_as_bytes() == content == read_if_exists(path)


def only(proxy: FaultyProxy, fault: str) -> str | None:
    drawn = FaultyProxy.draw(proxy)
    if drawn is None:
        return None
    proxy.faults[fault] += 1
    return fault


@pytest.mark.parametrize("seed", range(3))
def test_a_model_is_fetched_whole(network: Network, bucket: Bucket, checkpoint: Path, seed: int):
    upload(checkpoint, bucket, f"model-{seed}")
    proxy = network(share=0.6, seed=seed)
    source = open_model(f"gs://{BUCKET}/model-{seed}")
    folder = source.files.weights_folder()
    assert proxy.faults.total() > 1
    for name in ("config.json", "tokenizer.json", SINGLE_FILE):
        assert (folder / name).read_bytes() == (checkpoint / name).read_bytes()
    assert sorted(source.files.weights_crc32c()) == [SINGLE_FILE]


def test_a_file_that_is_changed_on_its_way_does_not_get_its_name(network: Network, bucket: Bucket):
    proxy = network()
    forward = proxy.forward

    def flip(method: str, path: str, headers: dict[str, str], body: bytes):
        if method == "PUT":
            body = bytes([body[0] ^ 1]) + body[1:]
        return forward(method, path, headers, body)

    proxy.forward = flip  # type: ignore[method-assign]
    with pytest.raises(OutputError, match=r"file: .*CRC32C"):
        write_whole(f"gs://{BUCKET}/file", b"content")
    assert names(bucket) == []


@pytest.mark.parametrize(
    ("name", "when", "message"),
    [
        (
            "layer_1/activations-00000-of-00002.tfrecord",
            "/o?projection=noAcl&prefix=out/&",
            "1 files were removed or changed since they were written, such as layer_1/activations",
        ),
        ("claim.json", "/o/out/README.md", "gs://research/out is no longer this run's"),
    ],
    ids=["a layer file", "the claim"],
)
def test_an_object_that_disappears_is_missed_and_the_same_command_completes_the_run(
    capsys,
    network: Network,
    bucket: Bucket,
    checkpoint: Path,
    short_tasks: Path,
    tmp_path: Path,
    expected,
    name: str,
    when: str,
    message: str,
):
    """It is deleted right before a certain request, at the end of the run."""
    deleted: list[str] = []

    def delete(method: str, path: str, body: bytes) -> None:
        if not deleted and when in unquote(path) and f"out/{name}" in names(bucket):
            deleted.append(name)
            bucket.blob(f"out/{name}").delete()

    network().before = delete
    assert message in error_of(capsys, checkpoint, short_tasks, OUT, *FLAGS)
    assert deleted
    assert not bucket.blob("out/metadata.json").exists()
    run(checkpoint, short_tasks, OUT, *FLAGS)
    assert_dataset(bucket, tmp_path / "fetched", expected)
