"""Files of the output folder that a run may replace, and files that it must keep."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from activation_dataset.format import manifest_file, shard_file
from activation_dataset.manifest import LayerManifest
from tests.end_to_end.job import digests, error_of, metadata_of, problems_of, rejections, run
from transforms import resume

FLAGS = ("--layers_to_extract", "0-1", "--batch_size", "1")


@pytest.fixture(scope="module")
def finished(checkpoint: Path, short_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    run(checkpoint, short_tasks, out, *FLAGS)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """Return a folder with a finished run and a file that no run wrote."""
    folder = shutil.copytree(finished, tmp_path / "out")
    (folder / "notes.md").write_text("mine")
    return folder


def test_another_run_is_refused_and_the_difference_named(
    capsys, checkpoint: Path, short_tasks: Path, out: Path
):
    before = digests(out)
    error = error_of(capsys, checkpoint, short_tasks, out, *FLAGS, "--pooling", "mean")
    assert f"{out} holds the output of another run: " in error
    assert 'pooling is "last" there, "mean" now' in error
    assert "--overwrite" in error
    error = error_of(capsys, checkpoint, short_tasks / "mirror.json", out, *FLAGS)
    assert f"{out} was started with other samples: " in error
    assert "samples is 5 there, 1 now" in error
    assert digests(out) == before


def test_a_model_that_was_edited_is_refused_and_the_field_named(
    capsys, checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    model, out = shutil.copytree(checkpoint, tmp_path / "model"), tmp_path / "out"
    run(model, short_tasks, out, *FLAGS)
    original = json.loads((model / "config.json").read_text())
    # Other heads for tensors of the same shapes.
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
    for change in ({"rope_theta": 5e5}, {"rms_norm_eps": 1e-5}, heads):
        (model / "config.json").write_text(json.dumps(original | change))
        error = error_of(capsys, model, short_tasks, out, *FLAGS)
        for name, value in change.items():
            assert f"model.{name} is {original[name]} there, {value} now" in error


def test_a_worker_of_another_kind_does_not_resume(
    capsys, checkpoint: Path, short_tasks: Path, out: Path
):
    path = out / manifest_file(0, 0, 1)
    manifest = LayerManifest.from_bytes(path.read_bytes())
    path.write_bytes(replace(manifest, ops="splash").to_bytes())
    run(checkpoint, short_tasks, out, *FLAGS)
    assert metadata_of(out).ops == tuple(sorted(("splash", manifest.ops)))
    (out / shard_file(1, 0, 1)).unlink()
    error = error_of(capsys, checkpoint, short_tasks, out, *FLAGS)
    assert f"computes with {manifest.ops} operations" in error
    assert "computed with splash" in error
    assert "--overwrite" in error
    assert not (out / "metadata.json").exists()


def test_overwriting_leaves_nothing_of_the_other_run(
    checkpoint: Path, short_tasks: Path, out: Path, tmp_path: Path
):
    flags = ("--layers_to_extract", "1", "--samples_per_shard", "2", "--batch_size", "1")
    run(checkpoint, short_tasks, out, *flags, "--overwrite")
    run(checkpoint, short_tasks, tmp_path / "fresh", *flags)
    found = digests(out)
    assert found.pop("notes.md"), "a file that no run wrote stays"
    assert found == digests(tmp_path / "fresh")
    assert problems_of(tmp_path / "fresh") == []


def test_a_mistake_comes_before_the_overwriting(
    capsys, checkpoint: Path, short_tasks: Path, out: Path, tmp_path: Path
):
    before = digests(out)
    for flags in (["--layers_to_extract", "9"], ["--tasks_file", "absent"], ["--runner=Nowhere"]):
        error_of(capsys, checkpoint, short_tasks, out, "--overwrite", *FLAGS, *flags)
        assert digests(out) == before
    model = shutil.copytree(checkpoint, tmp_path / "model")
    os.truncate(model / "model.safetensors", 5000)
    error = error_of(capsys, model, short_tasks, out, "--overwrite", *FLAGS)
    assert f"{model}/model.safetensors: " in error
    assert digests(out) == before


def test_too_many_rejected_tasks_stop_the_run_before_the_model_starts(
    capsys, checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    tasks = shutil.copytree(short_tasks, tmp_path / "tasks")
    (tasks / "bad.json").write_text("[]")
    (tasks / "worse.json").write_text("?")
    # No worker has this mesh, so the model could not start.
    flags = [*FLAGS, "--mesh_shape", "64,1", "--max_rejected", "1"]
    error = error_of(capsys, checkpoint, tasks, tmp_path / "out", *flags)
    assert "2 rejected (file not_a_task: 1, file not_json: 1)" in error
    assert "--max_rejected allows 1; " in error
    assert f"{tmp_path}/out/errors/rejected.jsonl" in error
    assert len(rejections(tmp_path / "out")) == 2
    # The same command succeeds once the tasks are fixed.
    (tasks / "worse.json").unlink()
    run(checkpoint, tasks, tmp_path / "out", *FLAGS, "--max_rejected", "1")
    assert problems_of(tmp_path / "out") == []
    assert metadata_of(tmp_path / "out").counts.rejected_files == {"not_a_task": 1}


def test_activations_that_are_not_finite_fail_the_run_unless_allowed(
    capsys, checkpoint: Path, short_tasks: Path, tmp_path: Path
):
    """The weights produce infinities in layer 1. The second run keeps the written files."""
    model, out = shutil.copytree(checkpoint, tmp_path / "model"), tmp_path / "out"
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = np.inf
    save_file(tensors, model / "model.safetensors")

    error = error_of(capsys, model, short_tasks, out, *FLAGS)
    assert "5 in layer 1." in error
    assert "--allow_nonfinite" in error
    assert not (out / "metadata.json").exists()
    written = {path: path.stat().st_mtime_ns for path in out.glob("layer_*/*")}
    assert len(written) == 2
    run(model, short_tasks, out, *FLAGS, "--allow_nonfinite")
    assert {path: path.stat().st_mtime_ns for path in out.glob("layer_*/*")} == written
    assert problems_of(out) == []
    statistics = metadata_of(out).statistics
    assert (statistics[0].count, statistics[0].nonfinite_count) == (5, 0)
    assert (statistics[1].count, statistics[1].nonfinite_count) == (0, 5)
    assert "NaN" not in (out / "metadata.json").read_text()


def test_a_complete_dataset_stays_readable_while_the_same_command_looks_again(
    checkpoint: Path, short_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, seen, look = tmp_path / "out", list[bool](), resume.finished_files

    def looked(*arguments: Any) -> Any:
        seen.append((out / "metadata.json").exists())
        return look(*arguments)

    run(checkpoint, short_tasks, out, *FLAGS)
    before = digests(out)
    monkeypatch.setattr("transforms.extract_activations.finished_files", looked)
    run(checkpoint, short_tasks, out, *FLAGS)
    assert seen
    assert all(seen)
    assert digests(out) == before
    next(out.glob("layer_*/*.tfrecord")).unlink()
    seen.clear()
    run(checkpoint, short_tasks, out, *FLAGS)
    assert not any(seen)
    assert digests(out) == before
