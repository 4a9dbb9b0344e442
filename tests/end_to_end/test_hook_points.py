"""Records of a run at several hook points, and its second run."""

from pathlib import Path

import numpy as np
import pytest

from activation_dataset.reading.reader import ActivationDataset
from qwen.extractor import ActivationExtractor
from tests.end_to_end.job import digests, error_of, problems_of, run

FLAGS = ("--layers_to_extract", "0", "2", "--compute_dtype", "float32", "--pooling", "none")
MORE = ("--batch_size", "1", "--samples_per_shard", "3")
POINTS = ("--hook_points", "resid_mid,mlp_out")
SITES = tuple(f"blocks.{n}.hook_{each}" for each in ("resid_mid", "mlp_out") for n in (0, 2))


@pytest.fixture(scope="module")
def out(checkpoint: Path, short_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hook_points") / "out"
    run(checkpoint, short_tasks, folder, *FLAGS, *MORE, *POINTS)
    return folder


def test_each_site_has_a_folder_of_what_the_extractor_gives(checkpoint: Path, out: Path):
    assert problems_of(out) == []
    folders = {f"layer_{layer}_{point}" for layer in (0, 2) for point in ("mlp_out", "resid_mid")}
    assert {path.name for path in out.glob("layer_*")} == folders
    dataset = ActivationDataset(out)
    assert dataset.sites == SITES
    extractor = ActivationExtractor.load(
        str(checkpoint),
        [0, 2],
        pooling="none",
        compute_dtype="float32",
        batch_size=1,
        hook_points=("resid_mid", "mlp_out"),
    )
    for index in range(len(dataset)):
        (alone,) = extractor.extract([dataset[SITES[0]][index].token_ids])
        for site in SITES:
            expected = alone.vectors[site]
            error = dataset[site][index].activation - expected
            assert np.linalg.norm(error) <= 1e-4 * np.linalg.norm(expected)


def test_missing_files_are_written_again(checkpoint: Path, short_tasks: Path, out: Path):
    before = digests(out)
    kept = out / "layer_2_resid_mid" / "activations-00001-of-00002.tfrecord"
    written = kept.stat().st_mtime_ns
    (out / "layer_2_mlp_out" / "activations-00001-of-00002.tfrecord").unlink()
    run(checkpoint, short_tasks, out, *FLAGS, *MORE, *POINTS)
    assert digests(out) == before
    assert kept.stat().st_mtime_ns == written


def test_other_hook_points_are_refused(capsys, checkpoint, short_tasks, out: Path):
    error = error_of(capsys, checkpoint, short_tasks, out, *FLAGS, *MORE)
    assert 'hook_points is ["resid_mid", "mlp_out"] there' in error
