import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation_dataset.format import (
    is_partial_file,
    manifest_file,
    parse_data_file,
    partial_file,
    prompts_file,
    shard_file,
)
from activation_dataset.sites import HOOK_POINTS, site_of
from activation_dataset.storage_dtype import to_float32


def test_files_have_the_documented_names():
    assert shard_file(10, 0, 98) == "layer_10/activations-00000-of-00098.tfrecord"
    assert shard_file(3, 123456, 200000) == "layer_3/activations-123456-of-200000.tfrecord"
    assert prompts_file(1, 2) == "prompts/prompts-00001-of-00002.tfrecord"
    assert manifest_file(10, 0, 9) == "manifests/layer_10-00000-of-00009.json"
    assert (
        manifest_file("blocks.3.hook_mlp_out", 0, 9)
        == "manifests/layer_3_mlp_out-00000-of-00009.json"
    )
    assert manifest_file(None, 8, 9) == "manifests/prompts-00008-of-00009.json"
    with pytest.raises(ValueError, match=r"shard 98 is not in 0\.\.97"):
        shard_file(10, 98, 98)


@given(
    st.integers(0, 200), st.sampled_from(HOOK_POINTS), st.integers(0, 10**6), st.integers(1, 10**6)
)
def test_names_of_data_files_are_recognized(layer, hook_point, shard, more):
    site = site_of(layer, hook_point)
    path = shard_file(site, shard, shard + more)
    assert parse_data_file(path) == (site, shard, shard + more)
    assert parse_data_file(prompts_file(shard, shard + more)) == (None, shard, shard + more)
    assert not is_partial_file(path)
    partial = partial_file(path, "0123456789abcdef")
    assert is_partial_file(partial)
    assert parse_data_file(partial) is None


@pytest.mark.parametrize(
    "path",
    [
        "layer_10/activations-00005-of-00005.tfrecord",
        "layer_10/activations-000005-of-00098.tfrecord",
        "layer_10_resid_post/activations-00005-of-00098.tfrecord",
        "x/layer_10/activations-00005-of-00098.tfrecord",
        "layer_10/activations-00005-of-00098.tfrecord.gz",
        "prompts/prompts-00098-of-00098.tfrecord",
    ],
)
def test_other_names_are_not(path):
    assert parse_data_file(path) is None


def test_every_bfloat16_is_widened_without_loss():
    every = np.arange(2**16, dtype=np.uint16)
    expected = every.view(ml_dtypes.bfloat16).astype(np.float32)
    assert to_float32(every).tobytes() == expected.tobytes()
    assert to_float32(expected) is expected
