"""Tasks, model and output in buckets of an emulated Cloud Storage: the bytes of a local run."""

from pathlib import Path

import pytest
from google.cloud.storage import Bucket

from beam_pipeline.command import main
from tests.conftest import COMPILED
from tests.end_to_end.emulator import BUCKET, address, bucket, download, upload
from tests.end_to_end.job import digests, error_of, problems_of, run

__all__ = ["address", "bucket"]

FLAGS = ("--layers_to_extract", "all", "--batch_size", "1", "--samples_per_shard", "2")
GS = f"gs://{BUCKET}"


def test_a_run_in_buckets_gives_the_bytes_of_a_local_one(
    capsys, bucket: Bucket, checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    upload(short_tasks, bucket, "corpus/tasks")
    upload(checkpoint, bucket, "models/small")
    old_spelling = ("--gcs_bucket", f"{GS}/out", "--upload_to_cloud", "True")
    cloud = ("--model_path", f"{GS}/models/small", "--tasks_file", f"{GS}/corpus/tasks/*.json")
    assert main([*cloud, *old_spelling, *FLAGS, "--compile_cache", COMPILED.name]) == 0
    assert capsys.readouterr().out.startswith(f"{GS}/out: 5 samples, 1,173 tokens\n")
    fetched = download(bucket, "out", tmp_path / "fetched")
    assert problems_of(fetched) == []

    run(checkpoint, short_tasks, tmp_path / "local", *FLAGS)
    found, expected = digests(fetched), digests(tmp_path / "local")
    for files in (found, expected):
        # They name the model as the user did, which differs.
        assert all(files.pop(name) for name in ("metadata.json", "run.json", "README.md"))
    assert found == expected

    # The same command finds everything finished; another run is refused.
    generations = {blob.name: blob.generation for blob in bucket.list_blobs(prefix="out/layer_")}
    run(f"{GS}/models/small", f"{GS}/corpus/tasks/", f"{GS}/out", *FLAGS)
    again = {blob.name: blob.generation for blob in bucket.list_blobs(prefix="out/layer_")}
    assert again == generations
    places = (f"{GS}/models/small", f"{GS}/corpus/tasks", f"{GS}/out")
    other = (*places, *FLAGS, "--samples_per_shard", "4")
    error = error_of(capsys, *other)
    assert f"{GS}/out holds the output of another run: settings.samples_per_shard is 2" in error
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
def test_a_bucket_that_does_not_exist_is_named(
    capsys, bucket: Bucket, checkpoint: Path, short_tasks: Path, tmp_path: Path, what, message
):
    places: dict[str, object] = {"model": checkpoint, "tasks": short_tasks, "out": tmp_path / "out"}
    places[what] = "gs://nowhere/in"
    error = error_of(capsys, places["model"], places["tasks"], places["out"], *FLAGS)
    assert message in error
