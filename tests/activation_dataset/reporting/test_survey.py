import hashlib

import numpy as np
import pytest

from activation_dataset import ActivationDataset
from activation_dataset.reporting import survey as survey_module
from activation_dataset.reporting import survey_layer
from activation_dataset.reporting.survey import survey
from activation_dataset.reporting.survey_layer import POSITION_STARTS
from tests.activation_dataset.reporting.grid_prompts import grid_prompt, write_prompted
from tests.activation_dataset.synthetic import LAYERS, text_prompt

HIDDEN = 24


def vectors_of(layer, prompt):
    """Normal ones, but for a sink at token 1, and one that is not finite at token 4."""
    seed = int.from_bytes(hashlib.sha256(f"{layer}{prompt.sample_id}".encode()).digest()[:4])
    rows = np.random.default_rng(seed).standard_normal((prompt.num_tokens, HIDDEN))
    rows[1, 3] = 1000 + layer
    rows[4, 0] = np.inf
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def prompts():
    many = [grid_prompt(f"t.json#{n}/0", [(3, 4), (5, n + 3)], seed=n) for n in range(6)]
    again = many[2]
    return [
        many[:3],
        [*many[3:], text_prompt("t.json#again/0", "again", again.token_ids)],
    ]


@pytest.fixture(scope="module")
def dataset(prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey") / "dataset"
    write_prompted(folder, prompts, vectors_of, hidden=HIDDEN)
    return ActivationDataset(folder)


@pytest.fixture(scope="module")
def found(dataset):
    return survey(dataset)


def test_everything_of_a_small_dataset_is_read(dataset, found):
    assert found.whole
    assert found.vectors == dataset.num_vectors
    assert [each.layer for each in found.layers] == list(LAYERS)


def test_norms_by_position_are_those_of_the_vectors(prompts, found):
    by_position: dict[int, list[float]] = {}
    for prompt in (prompt for shard in prompts for prompt in shard):
        rows = vectors_of(11, prompt).astype(np.float64)
        for position, row in enumerate(rows):
            if np.isfinite(row).all():
                by_position.setdefault(position, []).append(float(np.linalg.norm(row)))
    layer = found.layers[1]
    ends = [*POSITION_STARTS[1:].tolist(), 1 << 62]
    for place, (start, end) in enumerate(zip(POSITION_STARTS.tolist(), ends, strict=True)):
        norms = [norm for at in by_position if start <= at < end for norm in by_position[at]]
        assert layer.position_counts[place] == len(norms)
        if norms:
            assert layer.position_norms[place] == pytest.approx(np.mean(norms))
    assert layer.position_outliers[:, 0].sum() == layer.position_outliers[1, 0] == 7
    assert layer.position_counts[4] == 0  # not finite, all of them


def test_norms_by_what_tokens_show(prompts, found):
    shown = np.zeros(3, int)
    for prompt in (prompt for shard in prompts for prompt in shard):
        roles = np.delete(prompt.cells[:, 1], 4)
        shown += [np.sum(roles == 0), np.sum(roles == 1), np.sum(roles < 0)]
    assert found.layers[0].kinds[:, 0].tolist() == shown.tolist()


def test_each_outlier_is_named_once_where_it_is_largest(found):
    assert len(found.outliers) == 7
    assert {each.layer for each in found.outliers} <= set(LAYERS)
    assert all(each.origin.position == 1 for each in found.outliers)
    assert len({each.origin.number for each in found.outliers}) == 7
    factors = [each.factor for each in found.outliers]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] > 100


def test_the_largest_value_of_each_dimension(prompts, found):
    rows = np.concatenate([vectors_of(12, p) for shard in prompts for p in shard])
    finite = rows[np.isfinite(rows).all(axis=1)]
    np.testing.assert_array_equal(found.layers[2].largest, np.abs(finite).max(axis=0))


def test_repeated_prompts_are_named(found):
    assert found.prompts.repeated == 1
    assert found.prompts.examples == (("t.json#2/0", "t.json#again/0"),)
    assert len(found.prompts.lengths) == 7


def test_layers_are_compared_without_outliers_and_broken_vectors(found):
    positions = found.compared.positions
    assert len(positions) == len(found.likeness.vectors)
    assert not np.isin(positions, [1, 4]).any()
    np.testing.assert_allclose(np.diag(found.likeness.alignment), 1)


def test_grids_are_shown_with_their_norms(prompts, found):
    grid = found.grids[0]
    prompt = next(p for shard in prompts for p in shard if p.sample_id == grid.sample_id)
    np.testing.assert_array_equal(grid.places.token_ids, prompt.token_ids)
    expected = np.linalg.norm(vectors_of(LAYERS[1], prompt).astype(np.float64), axis=1)
    expected[4] = 0
    np.testing.assert_allclose(grid.norms[1], expected)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooled_vectors(tmp_path, prompts, pooling):
    def one(layer, prompt):
        return vectors_of(layer, prompt)[:1]

    write_prompted(tmp_path, prompts, one, pooling, "bfloat16", HIDDEN)
    found = survey(ActivationDataset(tmp_path))
    assert found.vectors == 7
    assert found.grids == ()
    assert found.likeness is None  # too few to compare
    counted = sum(each.position_counts.sum() for each in found.layers)
    assert counted == (21 if pooling == "last" else 0)


def test_of_a_large_dataset_a_choice_is_read(dataset, monkeypatch):
    monkeypatch.setattr(survey_module, "MAX_VECTORS", 100)
    monkeypatch.setattr("activation_dataset.reading.layer_file.RUN_BYTES", 1)
    first, again, other = (survey(dataset, seed=seed) for seed in (0, 0, 1))
    assert 100 <= first.vectors < dataset.num_vectors
    assert not first.whole
    np.testing.assert_array_equal(first.compared.samples, again.compared.samples)
    np.testing.assert_array_equal(first.layers[0].position_norms, again.layers[0].position_norms)
    assert first.layers[0].kinds.tolist() != other.layers[0].kinds.tolist()
    assert survey(dataset, whole=True).whole


def test_the_largest_outliers_are_kept_whatever_the_pieces(dataset, monkeypatch):
    monkeypatch.setattr(survey_layer, "OUTLIERS_NAMED", 2)
    whole = survey(dataset)
    monkeypatch.setattr("activation_dataset.reading.layer_file.RUN_BYTES", 1)
    pieces = survey(dataset)
    for a, b in zip(whole.layers, pieces.layers, strict=True):
        assert a.top_numbers.tolist() == b.top_numbers.tolist()
        assert len(a.top_numbers) == 2


def test_no_samples(tmp_path):
    write_prompted(tmp_path, [[]], vectors_of, hidden=HIDDEN)
    found = survey(ActivationDataset(tmp_path))
    assert (found.vectors, found.whole, found.outliers, found.likeness) == (0, True, (), None)
