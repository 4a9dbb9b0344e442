"""Tasks, model and output in emulated buckets, behind a bad network: the bytes of a local run.

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

import pytest
from google.api_core.retry import retry_base, retry_unary
from google.cloud.storage import Bucket

from activation_dataset.checksum import crc32c, to_text
from beam_pipeline.command import main
from tests.conftest import COMPILED
from tests.end_to_end.emulator import BUCKET, address, bucket, download, names, upload
from tests.end_to_end.faulty_proxy import FAULTS, FaultyProxy, faulty_proxy
from tests.end_to_end.job import digests, error_of, problems_of, run
from transforms.storage import read_if_exists
from transforms.whole_file import WholeFile

__all__ = ["address", "bucket"]

FLAGS = ("--layers_to_extract", "0-1", "--batch_size", "1", "--samples_per_shard", "3")
OUT = f"gs://{BUCKET}/out"

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


def test_one_request_in_ten_fails_and_no_byte_differs(
    capsys, network: Network, bucket: Bucket, checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    upload(short_tasks, bucket, "tasks")
    upload(checkpoint, bucket, "faulty-model")
    proxy = network(share=0.1, seed=6)
    model, tasks = f"gs://{BUCKET}/faulty-model", f"gs://{BUCKET}/tasks/*.json"
    old_spelling = ("--gcs_bucket", OUT, "--upload_to_cloud", "True")
    places = ("--model_path", model, "--tasks_file", tasks)
    assert main([*places, *old_spelling, *FLAGS, "--compile_cache", COMPILED.name]) == 0
    assert capsys.readouterr().out.startswith(f"{OUT}: 5 samples, 1,173 tokens\n")
    assert proxy.faults.keys() == set(FAULTS)
    fetched = download(bucket, "out", tmp_path / "fetched")
    assert problems_of(fetched) == []
    run(checkpoint, short_tasks, tmp_path / "local", *FLAGS)
    found, expected = digests(fetched), digests(tmp_path / "local")
    for files in (found, expected):  # Some name the model as the user did, which differs.
        assert all(files.pop(name) for name in ("metadata.json", "run.json", "README.md"))
    assert found == expected

    # The same command computes what is missing and keeps the rest; another run is refused.
    for name in ("metadata.json", "layer_1/activations-00000-of-00002.tfrecord"):
        bucket.blob(f"out/{name}").delete()
    kept = {blob.name: blob.generation for blob in bucket.list_blobs(prefix="out/layer_")}
    run(model, tasks, OUT, *FLAGS)
    again = {blob.name: blob.generation for blob in bucket.list_blobs(prefix="out/layer_")}
    assert kept.items() < again.items()
    assert digests(download(bucket, "out", tmp_path / "again")) == digests(fetched)
    error = error_of(capsys, model, tasks, OUT, *FLAGS, "--samples_per_shard", "4")
    assert f"{OUT} holds the output of another run: settings.samples_per_shard is 3" in error


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (0, "--model_path 'gs://nowhere/in'"),
        (1, "--tasks_file 'gs://nowhere/in' cannot be listed"),
        (2, "gs://nowhere/in: cannot be read or written"),
    ],
    ids=["model", "tasks", "out"],
)
def test_a_bucket_that_does_not_exist_is_named(
    capsys, bucket: Bucket, checkpoint: Path, short_tasks: Path, tmp_path: Path, place: int, message
):
    places: list[object] = [checkpoint, short_tasks, tmp_path / "out"]
    places[place] = "gs://nowhere/in"
    assert message in error_of(capsys, *places, *FLAGS)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["503", "cut within", "cut after"])
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
