"""The same command gives the same bytes: again, in another process, and shared by two workers."""

from pathlib import Path

import pytest

from tests.end_to_end.job import digests, problems_of, run, run_process

FLAGS = (
    *("--layers_to_extract", "all"),
    *("--pooling", "none"),
    *("--batch_size", "1"),
    *("--samples_per_shard", "2"),
)


@pytest.fixture(scope="module")
def expected(checkpoint: Path, short_tasks: Path, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("first") / "out"
    run(checkpoint, short_tasks, out, *FLAGS)
    assert problems_of(out) == []
    found = digests(out)
    assert sum(name.startswith("layer_") for name in found) == 3 * 3
    return found


def test_the_same_command_gives_the_same_bytes(
    expected: dict[str, str], checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    """In another process, which compiles for itself and hashes strings in another way."""
    environment = {"PYTHONHASHSEED": "12345"}
    result = run_process(checkpoint, short_tasks, tmp_path / "out", *FLAGS, environment=environment)
    assert result.returncode == 0, result.stderr
    assert digests(tmp_path / "out") == expected
    assert result.stderr == ""
    assert f"{tmp_path}/out: 5 samples, 1,173 tokens" in result.stdout


def test_two_worker_processes_give_the_same_bytes(
    expected: dict[str, str], checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    workers = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")
    result = run_process(checkpoint, short_tasks, tmp_path / "out", *FLAGS, *workers)
    assert result.returncode == 0, result.stderr
    assert digests(tmp_path / "out") == expected
    assert result.stderr == ""


def test_the_order_of_the_inputs_does_not_count(
    expected: dict[str, str], checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    first, *rest = sorted(map(str, short_tasks.iterdir()), reverse=True)
    more = ["--tasks_file", *rest, *rest[:2]]
    run(checkpoint, first, tmp_path / "out", *FLAGS, *more)
    assert digests(tmp_path / "out") == expected


def test_a_finished_run_is_left_unchanged(checkpoint: Path, short_tasks: Path, tmp_path: Path):
    run(checkpoint, short_tasks, tmp_path, *FLAGS)
    before = digests(tmp_path)
    data = [*tmp_path.glob("layer_*/*"), *tmp_path.glob("prompts/*")]
    written = [path.stat().st_mtime_ns for path in data]
    run(checkpoint, short_tasks, tmp_path, *FLAGS)
    assert digests(tmp_path) == before
    assert [path.stat().st_mtime_ns for path in data] == written, "a good file is not made again"


def test_an_interrupted_run_is_completed_to_the_same_bytes(
    expected: dict[str, str], checkpoint: Path, short_tasks: Path, tmp_path: Path, caplog
):
    run(checkpoint, short_tasks, tmp_path, *FLAGS)
    (tmp_path / "metadata.json").unlink()
    first, second, kept = sorted((tmp_path / "layer_1").iterdir())
    written = kept.stat().st_mtime_ns
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    kept.with_name(f"{kept.name}.partial-0123456789abcdef").write_bytes(b"half")
    run(checkpoint, short_tasks, tmp_path, *FLAGS)
    assert digests(tmp_path) == expected
    assert kept.stat().st_mtime_ns == written
    assert f"{second} is written again" in caplog.text
