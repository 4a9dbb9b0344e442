"""Tasks, model and output in emulated buckets behind a faulty network, with equal bytes.

Google's library retries failed requests. These tests check that every request is retried and that
nothing is done twice or only in part.
"""

from __future__ import annotations

import random
import time
from collections import Counter
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
from tests.end_to_end.bucket_rules import UNTIL
from tests.end_to_end.emulator import BUCKET, address, bucket, download, names, upload
from tests.end_to_end.faulty_proxy import FAULTS, FaultyProxy, faulty_proxy
from tests.end_to_end.job import digests, error_of, problems_of, run
from tests.transforms.shards import blocks_of, write_blocks
from transforms.output_folder import ClaimLostError, OutputFolder
from transforms.resume import ListedFiles, finished_files
from transforms.storage import DELETES_OF_A_BATCH, OutputError, delete_all, read_if_exists
from transforms.upload import ONE_REQUEST_BYTES, UPLOAD_BYTES
from transforms.whole_file import WholeFile, write_whole

__all__ = ["address", "bucket"]

FLAGS = ("--layers_to_extract", "0-1", "--batch_size", "1", "--samples_per_shard", "3")
OUT = f"gs://{BUCKET}/out"

Network = Callable[..., FaultyProxy]


@pytest.fixture
def network(address: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Start a proxy in front of the bucket for all clients except `bucket`."""
    # Pauses between retries take a fiftieth of their time.
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
    for files in (found, expected):  # Some name the model by its path, which differs.
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
    """The library sends a file in parts of 16 MiB, so this file has two parts."""
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


def only(proxy: FaultyProxy, fault: str, kind: str) -> str | None:
    drawn = FaultyProxy.draw(proxy, kind)
    if drawn is None:
        return None
    proxy.faults[fault] += 1
    return fault


CREATED = {"multipart": 1}
REFUSED_AND_FOUND_EQUAL = {"multipart": 1, "describe": 1}
REPLACED = {"multipart": 2, "describe": 1}


@pytest.mark.parametrize("size", [0, 5, ONE_REQUEST_BYTES])
def test_a_small_file_is_one_request_and_is_replaced_only_by_other_content(
    network: Network, bucket: Bucket, size: int
):
    proxy, path = network(), f"gs://{BUCKET}/small.gz"
    content = random.Random(0).randbytes(size)
    for written, expected in (
        (content, CREATED),
        (content, REFUSED_AND_FOUND_EQUAL),
        (b"other", REPLACED),
    ):
        proxy.rules.requests.clear()
        write_whole(path, written)
        assert proxy.rules.requests == expected
        assert bucket.blob("small.gz").download_as_bytes() == written


def test_a_request_that_succeeded_without_an_answer_is_a_success(network: Network, bucket: Bucket):
    proxy = network()
    proxy.once["multipart"] = "cut after"
    write_whole(f"gs://{BUCKET}/small", b"content")
    assert proxy.rules.requests == {"multipart": 2, "describe": 1}
    assert bucket.blob("small").download_as_bytes() == b"content"


@pytest.mark.parametrize("equal", [True, False])
def test_the_first_of_two_concurrent_large_uploads_counts(
    network: Network, bucket: Bucket, equal: bool
):
    network()
    path, content = f"gs://{BUCKET}/large", random.Random(0).randbytes(UPLOAD_BYTES + 1)
    first, second = WholeFile(path), WholeFile(path)
    first.stream.write(content)
    second.stream.write(content if equal else content[::-1])
    first.commit()
    if equal:
        second.commit()
    else:
        with pytest.raises(OutputError, match=f"^{path}: other content"):
            second.commit()
    assert bucket.blob("large").download_as_bytes() == content
    # An upload that begins later knows the object, and replaces it.
    third = WholeFile(path)
    third.stream.write(content[::-1])
    third.commit()
    assert bucket.blob("large").download_as_bytes() == content[::-1]


def test_the_checksum_of_a_large_file_is_compared_before_the_object_appears(
    network: Network, bucket: Bucket
):
    network()
    file = WholeFile(f"gs://{BUCKET}/large")
    file.stream.write(bytes(ONE_REQUEST_BYTES + 1))
    with pytest.raises(OutputError, match="CRC32C"):
        file.commit("AAAAAA==")
    assert names(bucket) == []


def test_many_objects_are_deleted_in_a_few_requests(network: Network, bucket: Bucket):
    proxy = network()
    paths = [f"gs://{BUCKET}/many/{n}" for n in range(2 * DELETES_OF_A_BATCH + 1)]
    for path in paths[::2]:  # Deleting absent objects is not an error.
        write_whole(path, b"")
    delete_all(paths)
    assert names(bucket) == []
    assert (proxy.rules.requests["batch"], proxy.rules.requests["delete"]) == (2, 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_batch_of_deletions_is_repeated(network: Network, bucket: Bucket, fault: str):
    proxy = network()
    paths = [f"gs://{BUCKET}/{n}" for n in range(3)]
    for path in paths:
        write_whole(path, b"")
    proxy.once["batch"] = fault
    delete_all(paths)
    assert (names(bucket), proxy.once) == ([], {})


def test_deletions_that_fail_within_a_batch_are_tried_alone(network: Network, bucket: Bucket):
    proxy = network()
    paths = [f"gs://{BUCKET}/{n}" for n in range(3)]
    for path in paths:
        write_whole(path, b"")
    proxy.rules.unavailable_in_batches = "/o/1"
    delete_all(paths)
    assert names(bucket) == []
    assert (proxy.rules.requests["batch"], proxy.rules.requests["delete"]) == (1, 1)


class TestRetentionPolicy:
    """A bucket whose objects cannot be replaced or deleted."""

    def test_a_run_resumes_and_is_not_overwritten(
        self,
        capsys,
        network: Network,
        checkpoint: Path,
        short_tasks: Path,
        tmp_path: Path,
        bucket: Bucket,
    ):
        network().rules.retained = True
        run(checkpoint, short_tasks, OUT, *FLAGS)
        for name in ("metadata.json", "layer_1/activations-00000-of-00002.tfrecord"):
            bucket.blob(f"out/{name}").delete()
        before = {blob.name: blob.generation for blob in bucket.list_blobs()}
        run(checkpoint, short_tasks, OUT, *FLAGS)
        after = {blob.name: blob.generation for blob in bucket.list_blobs()}
        assert before.items() < after.items(), "nothing was replaced"
        assert {"out/claim.json", "out/claim-2.json"} < after.keys()
        assert problems_of(download(bucket, "out", tmp_path / "fetched")) == []
        error = error_of(capsys, checkpoint, short_tasks, OUT, *FLAGS, "--overwrite")
        assert f"retention policy of bucket {BUCKET}" in error
        assert UNTIL in error
        assert "--output_dir" in error
        assert after.items() < {blob.name: blob.generation for blob in bucket.list_blobs()}.items()

    def test_the_last_claim_counts(self, network: Network, bucket: Bucket):
        proxy = network()
        proxy.rules.retained = True
        first, second, third = (OutputFolder.claim(OUT) for _ in range(3))
        for lost in (first, second):
            with pytest.raises(ClaimLostError):
                lost.write("run.json", b"{}")
        third.write("run.json", b"{}")
        proxy.rules.retained = False
        second.release()
        third.check()
        third.release()
        assert names(bucket) == ["out/run.json"]

    @pytest.mark.parametrize("size", [5, ONE_REQUEST_BYTES + 1, UPLOAD_BYTES + 1])
    def test_equal_content_stays_and_other_content_is_refused(
        self, network: Network, bucket: Bucket, size: int
    ):
        network().rules.retained = True
        path, content = f"gs://{BUCKET}/file", random.Random(0).randbytes(size)
        for _ in range(2):
            with WholeFile(path) as file:
                file.stream.write(content)
                file.commit()
        with WholeFile(path) as file:
            file.stream.write(content[::-1])
            with pytest.raises(OutputError, match=f"retention policy of bucket {BUCKET}"):
                file.commit()
        assert bucket.blob("file").download_as_bytes() == content


def test_a_bucket_is_listed_for_resuming_instead_of_asked_for_each_file(
    network: Network, bucket: Bucket, checkpoint: Path, short_tasks: Path
):
    proxy = network()
    run(checkpoint, short_tasks, OUT, *FLAGS)
    first = Counter(proxy.rules.requests)
    files = [name for name in names(bucket) if name.endswith(".tfrecord")]
    # One for each file, each manifest, the claim, `run.json`, `README.md` and the metadata.
    assert first["multipart"] == 2 * len(files) + 4
    assert not {"resumable", "part", "describe", "batch"} & first.keys()
    assert first["delete"] == 1, "the claim"
    proxy.rules.requests.clear()
    run(checkpoint, short_tasks, OUT, *FLAGS)
    assert proxy.rules.requests["describe"] == 0
    assert proxy.rules.requests["multipart"] == 1, "the claim"


def test_a_file_that_is_committed_after_the_listing_stays(network: Network, bucket: Bucket):
    network()
    folder = OutputFolder.claim(OUT)
    listed = ListedFiles.of(OUT, 2, [10])
    first = write_blocks(folder, 10, blocks_of(10, 1))
    assert finished_files(OUT, 1, 2, [10], listed) == {}
    before = {blob.name: blob.generation for blob in bucket.list_blobs()}
    assert write_blocks(folder, 10, blocks_of(10, 1)) == first
    assert {blob.name: blob.generation for blob in bucket.list_blobs()} == before
    assert finished_files(OUT, 1, 2, [10], ListedFiles.of(OUT, 2, [10])) == {10: first[0]}
