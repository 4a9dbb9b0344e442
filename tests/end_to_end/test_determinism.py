"""Equal bytes from the same command: repeated, in another process, and with several workers."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

from qwen import extractor
from tests.end_to_end.job import digests, metadata_of, problems_of, run, run_process

FLAGS = (
    *("--layers_to_extract", "all"),
    *("--pooling", "none"),
    *("--batch_size", "1"),
    *("--samples_per_shard", "2"),
)


@pytest.fixture(scope="module")
def dataset(checkpoint: Path, short_tasks: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("first") / "out"
    run(checkpoint, short_tasks, out, *FLAGS)
    assert problems_of(out) == []
    assert len(list(out.glob("layer_*/*"))) == 3 * 3
    return out


def test_two_worker_processes_give_the_same_bytes(
    dataset: Path, checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    """The processes compile their own programs and hash strings with another seed."""
    workers = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")
    hashes = {"PYTHONHASHSEED": "12345"}
    result = run_process(
        checkpoint, short_tasks, tmp_path / "out", *FLAGS, *workers, environment=hashes
    )
    assert result.returncode == 0, result.stderr
    assert digests(tmp_path / "out") == digests(dataset)
    assert result.stderr == ""
    assert f"{tmp_path}/out: 5 samples, 1,173 tokens" in result.stdout


def test_threads_share_a_model_and_neither_they_nor_the_order_of_the_inputs_change_a_byte(
    dataset: Path, checkpoint: Path, short_tasks: Path, tmp_path: Path, monkeypatch
):
    opened = Mock(side_effect=extractor.open_extractor)
    monkeypatch.setattr(extractor, "open_extractor", opened)
    first, *rest = sorted(map(str, short_tasks.iterdir()), reverse=True)
    more = ["--tasks_file", *rest, *rest[:2]]
    threads = ("--direct_num_workers", "4", "--direct_running_mode", "multi_threading")
    run(checkpoint, first, tmp_path / "out", *FLAGS, *more, *threads)
    opened.assert_called_once()
    assert digests(tmp_path / "out") == digests(dataset)


def test_an_interrupted_run_is_completed_to_the_same_bytes(
    dataset: Path, checkpoint: Path, short_tasks: Path, tmp_path: Path, caplog
):
    out = shutil.copytree(dataset, tmp_path / "out")
    (out / "metadata.json").unlink()
    first, second, kept = sorted((out / "layer_1").iterdir())
    written = kept.stat().st_mtime_ns
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    kept.with_name(f"{kept.name}.partial-0123456789abcdef").write_bytes(b"half")
    run(checkpoint, short_tasks, out, *FLAGS)
    assert digests(out) == digests(dataset)
    assert kept.stat().st_mtime_ns == written, "a valid file is not rewritten"
    assert f"{second} is written again" in caplog.text


def test_shards_for_workers_do_not_depend_on_the_runner_and_outlive_a_lost_quota(
    checkpoint: Path, short_tasks: Path, tmp_path: Path, caplog
):
    first, second = tmp_path / "first", tmp_path / "second"
    flags = ("--layers_to_extract", "1", "--batch_size", "1", "--augment", "4")
    auto = (*flags, "--samples_per_shard", "auto")
    run(checkpoint, short_tasks, first, *auto, "--num_workers", "2")
    threads = ("--direct_num_workers", "3", "--direct_running_mode", "multi_threading")
    run(checkpoint, short_tasks, second, *auto, "--num_workers", "2", *threads)
    expected = digests(first)
    assert digests(second) == expected
    shards = metadata_of(first).shards
    assert len(shards) == 16
    assert {each.samples for each in shards} == {1, 2}
    assert metadata_of(first).run.settings["samples_per_shard"] == {"auto_for_workers": 2}

    (second / "metadata.json").unlink()
    next((second / "layer_1").iterdir()).unlink()
    run(checkpoint, short_tasks, second, *auto, "--num_workers", "1")
    assert digests(second) == expected
    assert f"{second} was started for 2 workers" in caplog.text
    run(checkpoint, short_tasks, second, *auto, "--num_workers", "1", "--overwrite")
    assert len(metadata_of(second).shards) == 8
