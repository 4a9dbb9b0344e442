"""Fixtures for tests of unmodified trainers of sparse autoencoders on exported data.

sae-lens and dictionary-learning have a separate environment. If they are not installed, the tests
are skipped.
"""

from typing import Any

import numpy as np
import pytest

from activation_dataset import ActivationDataset
from activation_dataset.__main__ import main
from tests.activation_dataset.synthetic import write_dataset

LAYER, HIDDEN = 11, 32
OTHER = "blocks.11.hook_mlp_out"
"""Another site, with twice the width."""


@pytest.fixture(scope="session", params=["bfloat16", "float8_e4m3"])
def dataset(request, tmp_path_factory):
    """Dataset of every token, about 6000 vectors in two shards."""
    path = tmp_path_factory.mktemp("interop") / "dataset"
    lengths = np.random.default_rng(0).integers(20, 180, 60).tolist()
    write_dataset(
        *(path, [lengths[:30], lengths[30:]], "none", request.param, HIDDEN),
        layers=(LAYER,),
        hook_points=("mlp_out", "resid_post"),
        widths={OTHER: 2 * HIDDEN},
    )
    return ActivationDataset(path)


@pytest.fixture
def export_and_load(dataset, tmp_path, capsys):
    """Function that exports, runs the lines that the command prints, and returns the variables."""

    def run(*arguments):
        out = str(tmp_path / "out")
        assert main(["export", dataset.path, out, "--layer", str(LAYER), OTHER, *arguments]) == 0
        found: dict[str, Any] = {}
        exec(capsys.readouterr().out.partition("To load them:")[2], found)
        return found

    return run


@pytest.fixture(scope="session")
def values(dataset):
    """[vectors, hidden] float32, all vectors in order."""
    return np.concatenate([block.values for block in list(dataset.blocks(LAYER))])
