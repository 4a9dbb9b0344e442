"""What goes wrong is said in one line, with what to do; nothing else is shown, and nothing lost."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.end_to_end.job import (
    dead_letters,
    error_of,
    metadata_of,
    problems_of,
    run,
    run_process,
)

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
    "empty.json": (b"", "empty_file", "nothing but white space (0 bytes)"),
    "broken.json": (changed()[:40], "truncated_json", "it is cut off"),
    "comma.json": (changed().replace(b", ", b",, ", 1), "not_json", "line 1"),
    "text.json": (b"not a task", "not_json", "begins with"),
    "ragged.json": (changed(train=grid([1, 2], [3])), "ragged_grid", "train"),
    "ten.json": (changed(train=grid([1, 10])), "bad_cell", "10"),
    "negative.json": (changed(test=grid([-1])), "bad_cell", "-1"),
    "fraction.json": (changed(test=grid([1.5])), "bad_cell", "1.5"),
    "letter.json": (changed(test=grid(["1"])), "bad_cell", "'1'"),
    "no_cells.json": (changed(test=grid([])), "empty_grid", "test"),
    "no_train.json": (changed(train=[]), "no_train_pairs", "train"),
    "no_test.json": (changed(test=[]), "no_test_inputs", "test"),
    "answers.json": (json.dumps({"a": [[[1]]]}).encode(), "solutions_file", "challenges"),
    "twice.jsonl": (changed(id="a") + b"\n" + changed(id="a"), "duplicate_id", "id"),
    "same_key.json": (changed().replace(b'"test"', b'"train"'), "duplicate_key", "train"),
    "other.json": (b'{"question": 1}', "not_a_task", "question"),
}
"""A file of each kind, the reason that it is given, and what its explanation must name."""


@pytest.fixture(scope="module")
def mixed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of all of these and one good task."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "tasks").mkdir()
    for name, (content, *_) in BAD_TASKS.items():
        (folder / "tasks" / name).write_bytes(content)
    (folder / "tasks" / "good.json").write_bytes(changed())
    run(checkpoint, folder / "tasks", folder / "out", *FLAGS)
    return folder / "out"


@pytest.mark.parametrize("name", BAD_TASKS)
def test_a_bad_task_is_a_dead_letter_that_says_what_is_wrong(mixed: Path, name: str):
    _, reason, named = BAD_TASKS[name]
    (letter,) = [each for each in dead_letters(mixed) if each["source"] == name]
    assert letter["reason"] == reason
    assert letter["detail"].startswith(name)
    assert named in letter["detail"]


def test_the_good_tasks_among_bad_ones_become_a_dataset(mixed: Path):
    assert problems_of(mixed) == []
    metadata = metadata_of(mixed)
    assert sum(metadata.rejected.values()) == len(BAD_TASKS)
    assert metadata.total_samples == 2  # good.json, and the first of the two with the same id


@pytest.mark.parametrize("name", ["empty.json", "broken.json", "ragged.json"])
def test_bad_tasks_alone_are_an_error(capsys, checkpoint: Path, tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(BAD_TASKS[name][0])
    error = error_of(capsys, checkpoint, tmp_path / name, tmp_path / "out", *FLAGS)
    assert f"no sample is left to extract: 1 tasks were rejected (1 {BAD_TASKS[name][1]})" in error
    assert f"{tmp_path}/out/errors/rejected.jsonl says why each was" in error
    assert len(dead_letters(tmp_path / "out")) == 1
    assert not (tmp_path / "out" / "metadata.json").exists()


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.json"
    path.write_bytes(changed())
    return path


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def weights_of(model: Path) -> Path:
    return model / "model.safetensors"


def cut_weights(model: Path) -> None:
    content = weights_of(model).read_bytes()
    weights_of(model).write_bytes(content[: len(content) // 2])


def change_tensors(model: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(weights_of(model))
    change(tensors)
    save_file(tensors, weights_of(model))


def change_config(model: Path, **fields: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


BAD_MODELS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no folder": (shutil.rmtree, ["there is no such folder"]),
    "no config": (lambda m: (m / "config.json").unlink(), ["config.json does not exist"]),
    "broken config": (lambda m: (m / "config.json").write_text("{"), ["not valid JSON"]),
    "another model": (lambda m: change_config(m, model_type="llama"), ["model_type='llama'"]),
    "no weights": (lambda m: weights_of(m).unlink(), ["no weights: expected model.safetensors"]),
    "truncated weights": (cut_weights, ["model.safetensors", "Download or copy the file again"]),
    "no header": (lambda m: weights_of(m).write_bytes(b"abc"), ["8 bytes of header length"]),
    "pickled weights": (
        lambda m: weights_of(m).rename(m / "pytorch_model.bin"),
        ["no weights", ".bin files are not read"],
    ),
    "a tensor is missing": (
        lambda m: change_tensors(m, lambda tensors: tensors.pop("model.norm.weight")),
        ["missing: model.norm.weight"],
    ),
    "a tensor too many": (
        lambda m: change_tensors(m, lambda tensors: tensors.update(extra=np.zeros(1, np.float32))),
        ["not part of the model: extra"],
    ),
    "a tensor of another shape": (
        lambda m: change_config(m, intermediate_size=64),
        ["wrong shape: ", "mlp.down_proj.weight has shape [32, 48], the config needs [32, 64]"],
    ),
    "no tokenizer": (
        lambda m: (m / "tokenizer.json").unlink(),
        ["no tokenizer", "Put the tokenizer.json of the model beside its weights"],
    ),
    "another tokenizer": (
        lambda m: change_config(m, vocab_size=500),
        ["makes ids up to 1023, but the model's vocab_size is 500: they do not belong together"],
    ),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model_is_an_error_that_names_what_is_wrong(
    capsys, model: Path, task: Path, tmp_path: Path, name: str
):
    damage, parts = BAD_MODELS[name]
    damage(model)
    error = error_of(capsys, model, task, tmp_path / "out", *FLAGS)
    assert str(model) in error
    for part in parts:
        assert part in error
    assert not (tmp_path / "out" / "metadata.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers_to_extract", "3"], "layer 3 does not exist (this model has 3 layers, 0 to 2)"),
        (["--layers_to_extract", "1-"], "--layers_to_extract: '1-' is not a layer"),
        (["--mesh_shape", "64,1"], "mesh_shape 64,1 needs 64 devices, this worker has "),
        (["--mesh_shape", "1,0"], "--mesh_shape: expected two positive numbers"),
        (["--model_path", "random:huge"], "'random:huge' is not a preset; there are: random:Qwen"),
        (["--model_path", "nowhere/at/all"], "--model_path 'nowhere/at/all': there is no such fol"),
        (["--tasks_file", "absent.json"], "--tasks_file 'absent.json': no such file"),
        (["--prompt_template", "absent.toml"], "prompt template 'absent.toml' is neither one of"),
        (["--max_length", "40000"], "--max_length=40000 is more than the 32768 positions"),
        (["--max_length", "1"], "no sample is left to extract: 1 tasks were rejected (1 too_long)"),
        (["--poling", "last"], "unknown flag --poling. Did you mean --pooling?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_flag_is_an_error(capsys, checkpoint, task, tmp_path: Path, flags, message: str):
    assert message in error_of(capsys, checkpoint, task, tmp_path / "out", *FLAGS, *flags)
    assert not (tmp_path / "out" / "metadata.json").exists()


@pytest.mark.parametrize("below", ["file", "file/deeper", "/proc/dataset", "/dev/null/out"])
def test_an_output_that_cannot_be_written_is_an_error(
    capsys, checkpoint: Path, task: Path, tmp_path: Path, below: str
):
    (tmp_path / "file").write_bytes(b"in the way")
    out = tmp_path / below
    error = error_of(capsys, checkpoint, task, out, *FLAGS)
    assert error.startswith(f"error: {out}/")
    assert ": cannot be read or written (" in error
    assert "check that --output_dir is a folder or bucket that this user may write to" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_permission_is_an_error(capsys, checkpoint, task, tmp_path: Path):
    (tmp_path / "out").mkdir(mode=0o500)
    error = error_of(capsys, checkpoint, task, tmp_path / "out", *FLAGS)
    assert "Permission denied" in error


def test_a_mistake_that_a_worker_finds_is_all_that_the_terminal_shows(
    checkpoint: Path, task: Path, tmp_path: Path
):
    result = run_process(checkpoint, task, tmp_path / "out", *FLAGS, "--mesh_shape", "64,1")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: mesh_shape 64,1 needs 64 devices, this worker has ")
    assert result.stderr.count("\n") == 1


def test_a_mistake_that_a_worker_process_finds_is_the_last_line(
    checkpoint: Path, task: Path, tmp_path: Path
):
    """Beam's worker process writes the trace to the terminal itself, before."""
    workers = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")
    mesh = ("--mesh_shape", "64,1")
    result = run_process(checkpoint, task, tmp_path / "out", *FLAGS, *workers, *mesh)
    assert result.returncode == 2
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: mesh_shape 64,1 needs 64 devices, this worker has ")
    assert "ERROR" not in result.stderr, "Beam's log does not say it once more"
