import numpy as np
import pytest

from activation_dataset.frontends import torch_dataset
from activation_dataset.reading.vectors import normalization_factor
from tests.interop.conftest import HIDDEN, LAYER, OTHER

pytest.importorskip("sae_lens", reason="sae-lens is not installed: make torch-test")
torch = pytest.importorskip("torch")
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig  # noqa: E402
from sae_lens.config import LoggingConfig, SAETrainerConfig  # noqa: E402
from sae_lens.training.activation_scaler import ActivationScaler  # noqa: E402
from sae_lens.training.sae_trainer import SAETrainer  # noqa: E402

HOOK = f"blocks.{LAYER}.hook_resid_post"
CONTEXT, BATCH = 16, 64


@pytest.fixture
def store(export_and_load):
    store = export_and_load("--to", "sae_lens", "--context_size", str(CONTEXT))["store"]
    store.train_batch_size_tokens = BATCH
    return store


def train(batches, steps):
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=HIDDEN, d_sae=64, k=8))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * BATCH,
            train_batch_size_samples=BATCH,
            lr=3e-3,
            lr_end=3e-4,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        batches,
    )
    losses = []
    step = trainer._train_step

    def recorded(**arguments):
        output = step(**arguments)
        losses.append(float(output.loss))
        return output

    trainer._train_step = recorded
    trainer.fit()
    return losses


def test_its_store_reads_the_export_of_several_files(monkeypatch, request, dataset, values):
    size = 10 * CONTEXT * 3 * HIDDEN * 4
    monkeypatch.setattr("activation_dataset.exporters.FILE_BYTES", size)
    store = request.getfixturevalue("store")
    places = dataset.locate(np.arange(dataset.num_vectors))
    start = 0
    for _ in range(2):
        activations, token_ids = store.get_raw_llm_batch()
        part = slice(start, start + len(activations))
        np.testing.assert_array_equal(activations.numpy(), values[part])
        np.testing.assert_array_equal(token_ids.numpy(), places.token_ids[part])
        start += len(activations)
    cached = store.cached_activation_dataset
    assert len(cached) == dataset.num_vectors // CONTEXT
    assert len(cached.cache_files) == -(-len(cached) // 10) > 3
    found = cached[:][HOOK].numpy().reshape(-1, HIDDEN)
    np.testing.assert_array_equal(found, values[: len(found)])
    other = cached.with_format("numpy")[:][OTHER].reshape(-1, 2 * HIDDEN)
    expected = np.concatenate([block.values for block in list(dataset.blocks(OTHER))])
    np.testing.assert_array_equal(other, expected[: len(other)])


def test_it_trains_on_the_export(store):
    losses = train(store, 200)
    assert len(losses) == 200
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])


def test_it_trains_on_batches_without_an_export(dataset):
    def batches():
        while True:
            for batch in torch_dataset(dataset, LAYER, BATCH):
                yield batch["values"]

    losses = train(batches(), 200)
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])


def test_its_normalization_is_that_of_the_statistics(dataset):
    batches = dataset.batches(LAYER, BATCH)
    scaler = ActivationScaler()
    tensors = (torch.from_numpy(batch.values) for batch in batches)
    scaler.estimate_scaling_factor(HIDDEN, tensors, n_batches_for_norm_estimate=len(batches))
    factor = normalization_factor(dataset.metadata.statistics[LAYER], "sae_lens")
    assert scaler.scaling_factor == pytest.approx(factor, rel=0.02)
