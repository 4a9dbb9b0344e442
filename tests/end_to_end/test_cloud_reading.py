"""Reading a dataset in a bucket of an emulated Cloud Storage without a local copy."""

from pathlib import Path

import numpy as np
import pytest
from google.cloud.storage import Bucket

from activation_dataset import ActivationDataset
from activation_dataset.__main__ import main
from tests.activation_dataset.synthetic import write_dataset
from tests.end_to_end.emulator import BUCKET, address, bucket, upload

__all__ = ["address", "bucket"]

URL = f"gs://{BUCKET}/read/dataset"


@pytest.fixture
def local(bucket: Bucket, tmp_path: Path) -> ActivationDataset:
    lengths = np.random.default_rng(0).integers(3, 90, 40).tolist()
    write_dataset(tmp_path / "dataset", [lengths[:25], lengths[25:]], "none", "bfloat16", 32)
    upload(tmp_path / "dataset", bucket, "read/dataset")
    return ActivationDataset(tmp_path / "dataset")


def test_it_reads_like_a_local_one(local: ActivationDataset) -> None:
    remote = ActivationDataset(URL)
    assert remote.layers == local.layers
    for here, there in zip(local.records(11), remote.records(11), strict=True):
        assert (here.sample_id, here.num_tokens) == (there.sample_id, there.num_tokens)
        np.testing.assert_array_equal(here.stored, there.stored)
    np.testing.assert_array_equal(local[11][30].stored, remote[11][30].stored)
    for ours, theirs in zip(local.batches(11, 64), remote.batches(11, 64), strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)
        assert ours.sample_ids == theirs.sample_ids


def test_the_commands_take_its_url(
    local: ActivationDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", URL]) == 0
    assert "40; 1,811 tokens" in capsys.readouterr().out
    assert main(["index", URL]) == 0
    assert "2 shards, 2 newly indexed" in capsys.readouterr().out
    assert main(["verify", URL]) == 0
    assert main(["report", URL, "-o", str(tmp_path / "report.html")]) == 0
    assert main(["card", URL]) == 0
