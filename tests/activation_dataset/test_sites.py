"""Tests of sites, and of a dataset with several hook points."""

import numpy as np
import pytest

from activation_dataset import ActivationDataset
from activation_dataset.format import layer_folder
from activation_dataset.sites import (
    HOOK_POINTS,
    Site,
    hook_name,
    in_forward_order,
    parse_site,
    place_of,
    site_label,
    site_of,
)
from tests.activation_dataset.synthetic import make_prompts, make_rows, row_seed, write_dataset

SHARDS = [[3, 40, 1, 17], [7, 60]]
LAYERS = (9, 10)
MLP_9, MLP_10 = "blocks.9.hook_mlp_out", "blocks.10.hook_mlp_out"


@pytest.fixture
def path(tmp_path):
    write_dataset(
        tmp_path / "dataset", SHARDS, "none", layers=LAYERS, hook_points=("mlp_out", "resid_post")
    )
    return tmp_path / "dataset"


def test_a_site_has_a_name_a_folder_and_a_label():
    names = {each: site_of(10, each) for each in HOOK_POINTS}
    assert names["resid_post"] == 10
    assert names["mlp_out"] == "blocks.10.hook_mlp_out"
    assert layer_folder(names["resid_post"]) == "layer_10"
    assert layer_folder(names["resid_mid"]) == "layer_10_resid_mid"
    assert (site_label(10), site_label("blocks.10.hook_attn_out")) == ("10", "10 attn_out")
    assert hook_name(10) == "blocks.10.hook_resid_post"
    for hook_point, site in names.items():
        assert place_of(site) == (10, hook_point)
        assert parse_site(str(site)) == parse_site(hook_name(site)) == site


@pytest.mark.parametrize("text", ["", "-1", "blocks.01.hook_mlp_out", "blocks.1.hook_mlp", "1\n"])
def test_other_texts_are_not_sites(text):
    with pytest.raises(ValueError, match="neither a layer number nor a name such as 'blocks"):
        parse_site(text)


def test_hook_points_are_put_in_forward_order():
    assert in_forward_order(["resid_post", "mlp_out", "mlp_out"]) == ("mlp_out", "resid_post")
    for wrong in ([], ["mlp_out", "resid"]):
        with pytest.raises(ValueError, match=r"hook points must be some of resid_pre, .* got"):
            in_forward_order(wrong)


def test_each_site_is_read_by_its_name(path):
    dataset = ActivationDataset(path)
    assert dataset.layers == LAYERS
    assert dataset.sites == (MLP_9, MLP_10, 9, 10)
    rows = np.concatenate([each.values for each in dataset.blocks(dataset.sites)])
    names: tuple[Site, ...] = (MLP_9, MLP_10, "blocks.9.hook_resid_post", 10)
    for place, site in enumerate(names):
        found = np.concatenate([each.activation for each in dataset[site]])
        np.testing.assert_array_equal(found, rows[:, place])
    first = make_rows(make_prompts(SHARDS[0], 0), "none", 8, row_seed(MLP_9, 0))
    np.testing.assert_array_equal(rows[: len(first), 0], first)


def test_a_site_that_was_not_captured_is_named(path):
    dataset = ActivationDataset(path)
    for site in (11, "blocks.9.hook_attn_out", "mlp_out"):
        for ask in (lambda s: dataset[s], lambda s: dataset.batches(s, 4)):
            with pytest.raises(KeyError, match=f"{site!r} is not in the dataset, which has"):
                ask(site)
