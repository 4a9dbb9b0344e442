"""A mistake is reported in one line that says what to do, and no good input is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.job import error_of, metadata_of, problems_of, rejections, run, run_process

FLAGS = ("--layers_to_extract", "0", "--batch_size", "1")

GOOD: dict[str, Any] = {
    "train": [{"input": [[1, 2], [3, 4]], "output": [[5]]}],
    "test": [{"input": [[6]]}],
}


def changed(**fields: Any) -> bytes:
    return json.dumps(GOOD | fields).encode()


def grid(*rows: Any) -> list[dict[str, Any]]:
    return [{"input": list(rows), "output": [[1]]}]


BAD_TASKS = {
    "empty.json": (b"", "empty_file", "0 bytes"),
    "broken.json": (changed()[:40], "truncated_json", "cut off"),
    "ragged.json": (changed(train=grid([1, 2], [3])), "ragged_grid", "train"),
    "twice.jsonl": (changed(id="a") + b"\n" + changed(id="a"), "duplicate_id", "id"),
}
"""Content of one bad file of each kind, the reason, and a word of the explanation."""


@pytest.fixture(scope="module")
def mixed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of all bad tasks and one good task."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "tasks").mkdir()
    for name, (content, *_) in BAD_TASKS.items():
        (folder / "tasks" / name).write_bytes(content)
    (folder / "tasks" / "good.json").write_bytes(changed())
    run(checkpoint, folder / "tasks", folder / "out", *FLAGS)
    return folder / "out"


def test_a_bad_task_is_rejected_with_the_reason(mixed: Path):
    found = {each["source"]: each for each in rejections(mixed)}
    assert found.keys() == BAD_TASKS.keys()
    for name, (_, reason, named) in BAD_TASKS.items():
        assert found[name]["reason"] == reason
        assert found[name]["detail"].startswith(name)
        assert named in found[name]["detail"]
    assert problems_of(mixed) == []
    metadata = metadata_of(mixed)
    assert sum(sum(each.values()) for each in metadata.counts.rejected) == len(BAD_TASKS)
    assert metadata.total_samples == 2  # good.json, and the first of the two with the same id


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.json"
    path.write_bytes(changed())
    return path


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint to damage."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def weights_of(model: Path) -> Path:
    return model / "model.safetensors"


def cut_weights(model: Path) -> None:
    content = weights_of(model).read_bytes()
    weights_of(model).write_bytes(content[: len(content) // 2])


def change_config(model: Path, **fields: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


BAD_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda m: weights_of(m).unlink(), "model.safetensors"),
    "truncated weights": (cut_weights, "model.safetensors"),
    "tensors of another shape": (lambda m: change_config(m, intermediate_size=64), "down_proj"),
    "another vocabulary": (lambda m: change_config(m, vocab_size=500), "embed_tokens"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model_is_an_error_that_names_what_is_wrong(
    capsys, model: Path, task: Path, tmp_path: Path, name: str
):
    damage, named = BAD_MODELS[name]
    damage(model)
    error = error_of(capsys, model, task, tmp_path / "out", *FLAGS)
    assert str(model) in error
    assert named in error
    assert not (tmp_path / "out" / "metadata.json").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--layers_to_extract", "3"], "--layers_to_extract: layer 3 does not exist"),
        (["--mesh_shape", "64,1"], "mesh_shape 64,1 needs 64 devices, but this worker has "),
        (["--tasks_file", "absent.json"], "--tasks_file 'absent.json'"),
        (["--poling", "last"], "unknown flag --poling. Did you mean --pooling?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_flag_is_an_error(capsys, checkpoint, task, tmp_path: Path, flags, named: str):
    assert named in error_of(capsys, checkpoint, task, tmp_path / "out", *FLAGS, *flags)
    assert not (tmp_path / "out" / "metadata.json").exists()


@pytest.mark.parametrize("below", ["file/deeper", "/proc/dataset"])
def test_an_output_that_cannot_be_written_is_an_error(
    capsys, checkpoint: Path, task: Path, tmp_path: Path, below: str
):
    (tmp_path / "file").write_bytes(b"in the way")
    out = tmp_path / below
    error = error_of(capsys, checkpoint, task, out, *FLAGS)
    assert error.startswith(f"error: {out}/")
    assert "--output_dir" in error


def test_a_mistake_that_a_worker_process_finds_is_the_last_line(
    checkpoint: Path, task: Path, tmp_path: Path
):
    """Beam's worker process first writes the traceback to the terminal itself."""
    workers = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")
    mesh = ("--mesh_shape", "64,1")
    result = run_process(checkpoint, task, tmp_path / "out", *FLAGS, *workers, *mesh)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("error: mesh_shape 64,1 needs 64 devices")
    assert "ERROR" not in result.stderr, "Beam's log does not repeat the error"
