import numpy as np
import pytest

from activation_dataset.frontends import torch_dataset
from activation_dataset.reading.vectors import normalization_factor
from tests.interop.conftest import HIDDEN, LAYER

pytest.importorskip(
    "dictionary_learning", reason="dictionary-learning is not installed: make torch-test"
)
torch = pytest.importorskip("torch")
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer  # noqa: E402
from dictionary_learning.training import get_norm_factor, trainSAE  # noqa: E402

BATCH, STEPS = 64, 80


@pytest.fixture
def batches(export_and_load):
    """Batches that trainSAE normalizes in place."""
    return export_and_load("--to", "dictionary_learning", "--batch_size", str(BATCH))["data"]


def explained(path, values):
    autoencoder = AutoEncoderTopK.from_pretrained(str(path / "trainer_0/ae.pt"), k=8)
    with torch.no_grad():
        given = torch.from_numpy(values)
        rest = given - autoencoder(given)
    return 1 - float(rest.var(0).sum() / given.var(0).sum())


def train(data, path, normalize):
    config = {
        "trainer": TopKTrainer,
        "activation_dim": HIDDEN,
        "dict_size": 64,
        "k": 8,
        "lr": 3e-3,
        "steps": STEPS,
        "warmup_steps": 5,
        "layer": LAYER,
        "lm_name": "random:tiny",
        "device": "cpu",
    }
    trainSAE(
        data=data,
        trainer_configs=[config],
        steps=STEPS,
        save_dir=str(path),
        normalize_activations=normalize,
        device="cpu",
    )


def test_it_trains_on_the_export(batches, values, tmp_path):
    assert {tuple(batch.shape) for batch in batches} == {(BATCH, HIDDEN)}
    train(batches, tmp_path, normalize=True)
    assert explained(tmp_path, values) > 0.5


def test_it_trains_on_batches_without_an_export(dataset, values, tmp_path):
    data = (batch["values"] for batch in torch_dataset(dataset, LAYER, BATCH))
    train(data, tmp_path, normalize=False)
    assert explained(tmp_path, values) > 0.5


def test_its_normalization_is_that_of_the_statistics(batches, dataset):
    factor = normalization_factor(dataset.metadata.statistics[LAYER], "dictionary_learning")
    assert 1 / get_norm_factor(batches, steps=len(batches)) == pytest.approx(factor, rel=0.02)
    for batch in dataset.batches(LAYER, 5000, normalize="dictionary_learning"):
        assert np.mean(np.sum(batch.values**2, axis=1)) == pytest.approx(1, rel=0.05)
