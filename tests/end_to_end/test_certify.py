"""Certification accepts a dataset of the job and refuses a dataset of another model.

The tests need torch, which cannot share a process with TensorFlow.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from activation_dataset.__main__ import main
from activation_dataset.certify import CERTIFICATE_FILE, certify
from qwen.export_preset import export_preset
from qwen.source import open_model
from tests.end_to_end.job import metadata_of, run

pytestmark = pytest.mark.torch

FLAGS = ("--layers_to_extract", "all", "--batch_size", "1", "--samples_per_shard", "2")


@pytest.fixture(autouse=True)
def _no_tensorflow():
    yield
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("pooling", "compute", "storage", "tolerance"),
    [
        ("mean", "float32", "bfloat16", 5e-3),
        ("none", "bfloat16", "float32", 4.5e-2),
    ],
)
def test_a_dataset_of_the_job_is_certified(
    capsys, checkpoint: Path, short_tasks: Path, tmp_path, pooling, compute, storage, tolerance
):
    dtypes = ("--compute_dtype", compute, "--storage_dtype", storage)
    run(checkpoint, short_tasks, tmp_path, *FLAGS, "--pooling", pooling, *dtypes)
    command = ["certify", str(tmp_path), "--model_path", str(checkpoint), "--samples", "3"]
    assert main(command) == 0
    assert f"within the tolerance of {tolerance:g}: 3 samples" in capsys.readouterr().out
    text = (tmp_path / CERTIFICATE_FILE).read_text()
    certificate = json.loads(text)
    assert certificate["passed"]
    digest = json.loads(metadata_of(tmp_path).to_json())["metadata_sha256"]
    assert certificate["metadata_sha256"] == digest
    worst = [each["relative_error"] for each in certificate["layers"].values()]
    assert len(worst) == 3
    assert 0 < max(worst) <= tolerance
    assert main(command) == 0
    assert (tmp_path / CERTIFICATE_FILE).read_text() == text
    other = certify(tmp_path, checkpoint, samples=3, seed=4)
    assert other["samples"] != certificate["samples"]
    assert len(certify(tmp_path, checkpoint, samples=100)["samples"]) == 5
    assert main(["card", str(tmp_path)]) == 0
    assert "## Certificate" in (tmp_path / "README.md").read_text()


def test_a_dataset_of_other_weights_fails(
    checkpoint: Path, short_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, other = tmp_path / "out", tmp_path / "other"
    run(checkpoint, short_tasks, out, *FLAGS)
    shutil.copytree(checkpoint, other)
    fields = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(fields | {"rope_theta": 77.0}))
    assert main(["certify", str(out), "--model_path", str(other)]) == 1
    assert "EXCEEDS the tolerance" in capsys.readouterr().out
    assert not json.loads((out / CERTIFICATE_FILE).read_text())["passed"]
    (other / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 2}))
    assert main(["certify", str(out), "--model_path", str(other)]) == 2
    assert "has 2 layers of width 32; the dataset has layer 2" in capsys.readouterr().err


def test_a_preset_is_exported_as_a_checkpoint(tmp_path: Path):
    export_preset("random:tiny", tmp_path)
    preset, exported = open_model("random:tiny"), open_model(str(tmp_path))
    assert exported.config == preset.config
    assert exported.tokenizer_fingerprint() == preset.tokenizer_fingerprint()
    ours, theirs = preset.weights(), exported.weights()
    assert ours.shapes() == theirs.shapes()
    for name in ours.shapes():
        assert np.array_equal(ours.read(name), theirs.read(name))
        assert ours.read(name).dtype == theirs.read(name).dtype
