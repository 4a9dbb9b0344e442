"""Trainers of sparse autoencoders, unchanged, on this package's data.

They need sae-lens and dictionary-learning, which live in an environment of their own. Where they
are not installed, these tests are skipped.
"""

import numpy as np
import pytest

from activation_dataset import ActivationDataset
from tests.activation_dataset.synthetic import write_dataset

LAYER, HIDDEN = 11, 32


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Some 6000 vectors of every token, in two shards."""
    path = tmp_path_factory.mktemp("interop") / "dataset"
    lengths = np.random.default_rng(0).integers(20, 180, 60).tolist()
    write_dataset(path, [lengths[:30], lengths[30:]], "none", "bfloat16", HIDDEN, layers=(LAYER,))
    return ActivationDataset(path)


@pytest.fixture(scope="session")
def values(dataset):
    """[vectors, hidden] float32, in order."""
    return np.concatenate([block.values for block in list(dataset.blocks(LAYER))])
