"""Tests of the example that trains an autoencoder and writes a report."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from activation_dataset import ActivationDataset
from examples.features import grid_features
from examples.fit import Fit, explained_by_components
from examples.held_out import split
from examples.sparse_autoencoder import Settings, strongest
from examples.train_sae import main
from tests.activation_dataset.reporting.browser import run_in_page
from tests.end_to_end.job import run

LAYER = 12


@pytest.fixture(scope="module")
def dataset(example_tasks, tmp_path_factory):
    """Dataset of every token, about 30,000, of two variants of each task."""
    out = tmp_path_factory.mktemp("sae") / "tokens"
    flags = ("--layers_to_extract", str(LAYER), "--pooling", "none", "--augment", "2")
    run("random:tiny", example_tasks / "*.json", out, *flags)
    return ActivationDataset(out)


@pytest.fixture(scope="module")
def trained(dataset):
    fit = Fit(dataset, LAYER, Settings(features=256, steps=500, batch_size=512))
    assert [progress.step for progress in fit] == list(range(50, 501, 50))
    return fit, fit.evaluate()


def test_it_explains_nine_tenths_and_more_than_principal_components(trained):
    fit, result = trained
    few = fit.held_out.values[:100]
    assert explained_by_components(few, few, few.shape[1]) == pytest.approx(1)
    assert result.explained > 0.9
    assert result.explained > result.by_components
    assert 0 < np.count_nonzero(result.codes, axis=1).max() <= 8


def test_tasks_are_held_out_whole(dataset):
    parts = split(dataset)
    assert len(parts.train) + len(parts.held_out) == dataset.num_vectors
    ids = [
        {dataset.task_id(each) for each in dataset.locate(numbers).samples.tolist()}
        for numbers in (parts.train, parts.held_out)
    ]
    assert ids[0].isdisjoint(ids[1])
    assert ids[1] == set(parts.tasks)


def test_the_strongest_are_those_of_a_sort():
    values = np.random.default_rng(0).random((20, 50), np.float32)
    values[3, 5:] = 0
    least = np.sort(values, axis=1)[:, -8, None]
    np.testing.assert_array_equal(
        strongest(jnp.asarray(values), 8), np.where(values >= least, values, 0)
    )


def test_a_feature_that_is_a_color_is_found(trained):
    fit, _ = trained
    places = fit.held_out.places
    black = (places.token_ids == 15) & (places.cells[:, 1] == 0) & (places.cells[:, 2] == 0)
    codes = np.zeros((len(black), 3), np.float32)
    codes[black, 1] = 2
    (feature,) = grid_features(fit.held_out, codes, 12)
    assert (feature.number, feature.color, feature.in_outputs) == (1, ("black", 1.0), 0.0)
    assert feature.frequency == pytest.approx(black.mean())
    for grid in feature.grids:
        assert (places.cells[grid, 1] == 0).all()
        assert black[grid].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "99"], "99"),
        (["--features", "4"], "active is 8, expected 1 to features = 4"),
        (["--batch_size", "10000000"], "with --pooling none, or use a smaller --batch_size"),
    ],
)
def test_a_mistake_is_reported_in_one_line(dataset, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main([dataset.path, *arguments])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_command_leaves_weights_and_a_page_that_a_phone_shows(dataset, tmp_path, capsys):
    out = tmp_path / "sae"
    main([dataset.path, "--steps", "20", "--batch_size", "256", "-o", str(out)])
    assert re.search(r"8 of 256 features explain -?[\d.]+%", capsys.readouterr().out)
    tensors = load_file(out / "sae.safetensors")
    assert tensors["decoder"].shape == (256, 64)
    np.testing.assert_allclose(np.linalg.norm(tensors["decoder"], axis=1), 1, rtol=1e-5)
    page = out / "report.html"
    for heading in ("Loss", "Explained variance", "Features on grids"):
        assert f"<h2>{heading}</h2>" in page.read_text("utf-8")
    width = "return document.documentElement.scrollWidth"
    assert run_in_page(page, width, tmp_path, 390) <= 390
