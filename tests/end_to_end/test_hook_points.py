"""A run that captures at several hook points: its records, its certificate, its second run."""

import json
from pathlib import Path

import numpy as np
import pytest

from activation_dataset.__main__ import main
from activation_dataset.certify import CERTIFICATE_FILE
from activation_dataset.reading.reader import ActivationDataset
from qwen.extractor import ActivationExtractor
from tests.end_to_end.job import digests, error_of, problems_of, run

LAYERS = ("--layers_to_extract", "0", "2")
FLAGS = (*LAYERS, "--hook_points", "resid_mid,mlp_out", "--compute_dtype", "float32")
MORE = ("--pooling", "none", "--batch_size", "1", "--samples_per_shard", "3")
SITES = tuple(f"blocks.{n}.hook_{each}" for each in ("resid_mid", "mlp_out") for n in (0, 2))


@pytest.fixture(scope="module")
def out(checkpoint: Path, short_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hook_points") / "out"
    run(checkpoint, short_tasks, folder, *FLAGS, *MORE)
    return folder


def test_each_site_has_a_folder_of_what_the_extractor_gives(checkpoint: Path, out: Path):
    assert problems_of(out) == []
    assert sorted(path.name for path in out.glob("layer_*")) == [
        "layer_0_mlp_out",
        "layer_0_resid_mid",
        "layer_2_mlp_out",
        "layer_2_resid_mid",
    ]
    dataset = ActivationDataset(out)
    assert dataset.sites == SITES
    extractor = ActivationExtractor.load(
        str(checkpoint),
        [0, 2],
        pooling="none",
        compute_dtype="float32",
        batch_size=1,
        hook_points=["resid_mid", "mlp_out"],
    )
    for index in range(len(dataset)):
        (alone,) = extractor.extract([dataset[SITES[0]][index].token_ids])
        for site in SITES:
            expected = alone.layers[site]
            error = dataset[site][index].activation - expected
            assert np.linalg.norm(error) <= 1e-4 * np.linalg.norm(expected)


def test_what_is_missing_is_written_again(checkpoint: Path, short_tasks: Path, out: Path):
    before = digests(out)
    file = out / "layer_2_mlp_out" / "activations-00001-of-00002.tfrecord"
    kept = out / "layer_2_resid_mid" / "activations-00001-of-00002.tfrecord"
    written = kept.stat().st_mtime_ns
    file.unlink()
    run(checkpoint, short_tasks, out, *FLAGS, *MORE)
    assert digests(out) == before
    assert kept.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("hook_points", "now"),
    [
        (["--hook_points", "mlp_out", "resid_post"], '["mlp_out", "resid_post"]'),
        (["--hook_points", "resid_post"], '["resid_post"]'),
        ([], '["resid_post"]'),
    ],
)
def test_other_hook_points_are_refused(
    capsys, checkpoint: Path, short_tasks: Path, out: Path, hook_points: list[str], now: str
):
    before = digests(out)
    flags = (*LAYERS, *hook_points, "--compute_dtype", "float32", *MORE)
    error = error_of(capsys, checkpoint, short_tasks, out, *flags)
    there = '["resid_mid", "mlp_out"]'
    assert f"another run: hook_points is {there} there, {now} now. Choose" in error
    assert digests(out) == before


def test_all_hook_points_are_certified(checkpoint: Path, short_tasks: Path, tmp_path: Path):
    pytest.importorskip("torch")
    points = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    flags = (*LAYERS, "--hook_points", *points, "--compute_dtype", "float32", *MORE)
    run(checkpoint, short_tasks, tmp_path, *flags)
    assert problems_of(tmp_path) == []
    command = ["certify", str(tmp_path), "--model_path", str(checkpoint), "--samples", "3"]
    assert main(command) == 0
    layers = json.loads((tmp_path / CERTIFICATE_FILE).read_text())["layers"]
    assert len(layers) == 10
    assert all(each["relative_error"] <= 1e-4 for each in layers.values())
    errors = {each["relative_error"] for each in layers.values()}
    assert len(errors) > 5, "each site is compared with its own reference"
