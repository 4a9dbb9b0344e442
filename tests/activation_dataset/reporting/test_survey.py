import hashlib

import numpy as np
import pytest

from activation_dataset import ActivationDataset
from activation_dataset.reporting import survey as survey_module
from activation_dataset.reporting.survey import survey
from tests.activation_dataset.reporting.grid_prompts import grid_prompt, write_prompted
from tests.activation_dataset.synthetic import LAYERS, text_prompt

HIDDEN = 24


def vectors_of(layer, prompt):
    """Return normal vectors except a sink at token 1 and a non-finite vector at token 4."""
    seed = int.from_bytes(hashlib.sha256(f"{layer}{prompt.sample_id}".encode()).digest()[:4])
    rows = np.random.default_rng(seed).standard_normal((prompt.num_tokens, HIDDEN))
    rows[1, 3] = 1000 + layer
    rows[4, 0] = np.inf
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def prompts():
    many = [grid_prompt(f"t.json#{n}/0", [(3, 4), (5, n + 3)], seed=n) for n in range(6)]
    again = text_prompt("t.json#again/0", "again", many[2].token_ids)
    return [many[:3], [*many[3:], again]]


@pytest.fixture(scope="module")
def dataset(prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey") / "dataset"
    write_prompted(folder, prompts, vectors_of, hidden=HIDDEN)
    return ActivationDataset(folder)


@pytest.fixture(scope="module")
def found(dataset):
    return survey(dataset)


def test_every_vector_of_a_small_dataset_is_read(dataset, prompts, found):
    np.testing.assert_array_equal(found.numbers, np.arange(dataset.num_vectors))
    for site, factors in zip(LAYERS, found.factors, strict=True):
        rows = np.concatenate([vectors_of(site, each) for shard in prompts for each in shard])
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        median = dataset.metadata.statistics[site].norm_histogram.median
        expected = np.where(np.isfinite(norms), norms / median, np.nan)
        np.testing.assert_allclose(factors, expected, rtol=1e-6)


def test_means_of_groups_leave_out_what_is_not_finite(found):
    means = found.mean_factors(found.places.positions, 80)
    first, broken = found.places.positions == 1, found.places.positions == 4
    np.testing.assert_allclose(means[:, 1], found.factors[:, first].mean(axis=1), rtol=1e-6)
    assert np.isnan(means[:, 4]).all()
    assert broken.sum() == 7
    assert np.isnan(found.mean_factors(np.full(len(found.numbers), -1), 2)).all()


def test_prompts_are_counted_and_layers_compared_without_outliers(found):
    assert (found.repeated, len(found.lengths)) == (1, 7)
    left_out = np.isin(found.places.positions, [1, 4]).sum()
    assert found.likeness.vectors == min(512, len(found.numbers)) - left_out
    np.testing.assert_allclose(np.diag(found.likeness.alignment), 1)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooled_vectors(tmp_path, prompts, pooling):
    def one(layer, prompt):
        return vectors_of(layer, prompt)[:1]

    write_prompted(tmp_path, prompts, one, pooling, "bfloat16", HIDDEN)
    found = survey(ActivationDataset(tmp_path))
    assert found.factors.shape == (3, 7)
    assert found.likeness is None  # Too few to compare.
    assert (found.places.positions >= 0).all() == (pooling == "last")


def test_a_part_of_a_large_dataset_is_read(dataset, monkeypatch):
    monkeypatch.setattr(survey_module, "MAX_VECTORS", 100)
    monkeypatch.setattr("activation_dataset.reading.shards.CHUNK_BYTES", 1)
    whole, first, again, other = (
        survey(dataset, whole=each, seed=seed)
        for each, seed in ((True, 0), (False, 0), (False, 0), (False, 1))
    )
    assert len(whole.numbers) == dataset.num_vectors > len(first.numbers) >= 100
    np.testing.assert_array_equal(first.numbers, again.numbers)
    np.testing.assert_array_equal(first.factors, whole.factors[:, first.numbers])
    assert first.numbers.tolist() != other.numbers.tolist()
