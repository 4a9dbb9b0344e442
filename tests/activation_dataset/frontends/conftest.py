import numpy as np
import pytest

from activation_dataset import ActivationDataset
from tests.activation_dataset.synthetic import write_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Dataset with 192 vectors of each of three layers, in records of many sizes."""
    path = tmp_path_factory.mktemp("frontends")
    write_dataset(path, [[3, 40, 1, 17], [7, 60], [12, 2, 50]], "none", "bfloat16", hidden=16)
    return ActivationDataset(path)


@pytest.fixture(scope="session")
def values(dataset):
    """Vectors of layer 10, [192, 16] float32."""
    return np.concatenate([block.values for block in list(dataset.blocks(10))])


@pytest.fixture
def wanted(dataset):
    """Numbers of the batches of 20 vectors of two epochs, in order."""
    batches = dataset.batches(10, 20, window=50)
    return [[batch.numbers.tolist() for batch in batches] for _ in range(2)]
