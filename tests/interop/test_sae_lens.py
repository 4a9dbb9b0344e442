import numpy as np
import pytest

from activation_dataset.frontends import torch_dataset
from activation_dataset.reading.vectors import normalization_factor
from tests.interop.conftest import HIDDEN, LAYER, export_to

pytest.importorskip("sae_lens", reason="sae-lens is not installed: make torch-test")
torch = pytest.importorskip("torch")
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig  # noqa: E402
from sae_lens.config import LoggingConfig, SAETrainerConfig  # noqa: E402
from sae_lens.training.activation_scaler import ActivationScaler  # noqa: E402
from sae_lens.training.activations_store import ActivationsStore  # noqa: E402
from sae_lens.training.sae_trainer import SAETrainer  # noqa: E402

HOOK = f"blocks.{LAYER}.hook_resid_post"
CONTEXT, BATCH = 16, 64


@pytest.fixture(scope="session")
def export(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("sae_lens") / "export"
    export_to(out, dataset, "--to", "sae_lens", "--context_size", str(CONTEXT))
    return out


def store_of(path):
    return ActivationsStore(
        model=None,
        dataset=None,
        streaming=False,
        cached_activations_path=str(path),
        hook_name=HOOK,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=HIDDEN,
        n_batches_in_buffer=16,
        total_training_tokens=4096,
        store_batch_size_prompts=4,
        train_batch_size_tokens=BATCH,
        prepend_bos=False,
        normalize_activations="none",
        device="cpu",
        dtype="float32",
    )


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


def test_its_store_reads_the_export(export, dataset, values):
    store = store_of(export)
    places = dataset.locate(np.arange(dataset.num_vectors))
    start = 0
    for _ in range(5):
        activations, token_ids = store.get_raw_llm_batch()
        part = slice(start, start + len(activations))
        np.testing.assert_array_equal(activations.numpy(), values[part])
        np.testing.assert_array_equal(token_ids.numpy(), places.token_ids[part])
        start += len(activations)
    assert len(store.cached_activation_dataset) == dataset.num_vectors // CONTEXT


def test_the_lines_that_the_export_prints_load_it(export_and_load, values):
    batch = next(iter(export_and_load("--to", "sae_lens", "--context_size", "16")["store"]))
    assert batch.shape == (4096, HIDDEN)
    known = {row.tobytes() for row in values}
    assert all(row.tobytes() in known for row in batch.numpy())


def test_several_files_are_one_dataset(dataset, values, tmp_path, monkeypatch):
    size = 10 * CONTEXT * HIDDEN * 4
    monkeypatch.setattr("activation_dataset.exporters.FILE_BYTES", size)
    export_to(tmp_path / "out", dataset, "--to", "sae_lens", "--context_size", str(CONTEXT))
    cached = store_of(tmp_path / "out").cached_activation_dataset
    assert len(list((tmp_path / "out").glob("*.arrow"))) == -(-len(cached) // 10) > 3
    found = cached[:][HOOK].numpy().reshape(-1, HIDDEN)
    np.testing.assert_array_equal(found, values[: len(found)])


def test_it_trains_on_the_export(export):
    losses = train(store_of(export), 200)
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
