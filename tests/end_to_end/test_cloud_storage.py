"""Tasks, model and output in buckets of an emulated Cloud Storage: the bytes of a local run."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from gcp_storage_emulator.server import create_server
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Bucket, Client

from beam_pipeline.command import main
from tests.conftest import COMPILED
from tests.end_to_end.job import digests, error_of, problems_of, run
from transforms.storage import OutputError, read_if_exists
from transforms.whole_file import WholeFile

FLAGS = ("--layers_to_extract", "all", "--batch_size", "1", "--samples_per_shard", "2")
BUCKET = "research"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    server = create_server("localhost", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    yield f"http://localhost:{port}"
    server.stop()


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "project")
    return Client("project", AnonymousCredentials()).bucket(BUCKET)


def upload(folder: Path, bucket: Bucket, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            name = f"{prefix}/{path.relative_to(folder).as_posix()}"
            bucket.blob(name).upload_from_filename(path)


def download(bucket: Bucket, prefix: str, folder: Path) -> Path:
    for blob in bucket.list_blobs(prefix=f"{prefix}/"):
        path = folder / blob.name.removeprefix(f"{prefix}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        blob.download_to_filename(path)
    return folder


def test_a_run_in_buckets_gives_the_bytes_of_a_local_one(
    capsys, bucket: Bucket, checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    upload(short_tasks, bucket, "corpus/tasks")
    upload(checkpoint, bucket, "models/small")
    gs = f"gs://{BUCKET}"
    old_spelling = ("--gcs_bucket", f"{gs}/out", "--upload_to_cloud", "True")
    cloud = ("--model_path", f"{gs}/models/small", "--tasks_file", f"{gs}/corpus/tasks/*.json")
    assert main([*cloud, *old_spelling, *FLAGS, "--compile_cache", COMPILED.name]) == 0
    assert capsys.readouterr().out.startswith(f"{gs}/out: 5 samples, 1,173 tokens\n")
    fetched = download(bucket, "out", tmp_path / "fetched")
    assert problems_of(fetched) == []

    run(checkpoint, short_tasks, tmp_path / "local", *FLAGS)
    found, expected = digests(fetched), digests(tmp_path / "local")
    for files in (found, expected):
        # They name the model as the user did, which is not the same.
        assert files.pop("metadata.json")
        assert files.pop("run.json")
        assert files.pop("README.md")
    assert found == expected

    # Given again, the command finds all done; given for another run, it is refused.
    generations = {blob.name: blob.generation for blob in bucket.list_blobs(prefix="out/layer_")}
    run(f"{gs}/models/small", f"{gs}/corpus/tasks/", f"{gs}/out", *FLAGS)
    again = {blob.name: blob.generation for blob in bucket.list_blobs(prefix="out/layer_")}
    assert again == generations
    other = (
        f"{gs}/models/small",
        f"{gs}/corpus/tasks",
        f"{gs}/out",
        *FLAGS,
        "--samples_per_shard",
        "4",
    )
    error = error_of(capsys, *other)
    assert f"{gs}/out holds the output of another run: settings.samples_per_shard is 2" in error
    run(*other, "--overwrite")
    assert problems_of(download(bucket, "out", tmp_path / "overwritten")) == []


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("tasks", "--tasks_file 'gs://nowhere/in' cannot be listed"),
        ("out", "gs://nowhere/in: cannot be read or written"),
        ("model", "--model_path 'gs://nowhere/in'"),
    ],
)
def test_a_bucket_that_is_not_there_is_named(
    capsys, bucket: Bucket, checkpoint: Path, short_tasks: Path, tmp_path: Path, what, message
):
    places: dict[str, object] = {"model": checkpoint, "tasks": short_tasks, "out": tmp_path / "out"}
    places[what] = "gs://nowhere/in"
    error = error_of(capsys, places["model"], places["tasks"], places["out"], *FLAGS)
    assert message in error


def test_what_the_store_got_is_compared_with_what_was_sent(bucket: Bucket):
    path = f"gs://{BUCKET}/whole/file"
    file = WholeFile(path)
    file.stream.write(b"hello")
    with pytest.raises(OutputError, match=r"stored CRC32C mnG7TA==, sent AAAAAA=="):
        file.commit("AAAAAA==")
    assert [blob.name for blob in bucket.list_blobs(prefix="whole/")] == []
    file = WholeFile(path)
    file.stream.write(b"hello")
    file.commit("mnG7TA==")
    assert read_if_exists(path) == b"hello"
    assert [blob.name for blob in bucket.list_blobs(prefix="whole/")] == ["whole/file"]
