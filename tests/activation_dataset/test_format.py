import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from activation_dataset.format import (
    bfloat16_to_float32,
    float32_to_bfloat16,
    is_partial_file,
    parse_shard_file,
    partial_file,
    shard_file,
    to_float32,
    to_storage,
)

ALL_BFLOAT16 = np.arange(2**16, dtype=np.uint16)


def test_layer_files_have_the_documented_names():
    assert shard_file(10, 0, 98) == "layer_10/activations-00000-of-00098.tfrecord"
    assert shard_file(3, 123456, 200000) == "layer_3/activations-123456-of-200000.tfrecord"
    with pytest.raises(ValueError, match=r"shard 98 is not in 0\.\.97"):
        shard_file(10, 98, 98)


@given(st.integers(0, 200), st.integers(0, 10**6), st.integers(1, 10**6))
def test_names_of_layer_files_are_recognised(layer, shard, more):
    path = shard_file(layer, shard, shard + more)
    assert parse_shard_file(path) == (layer, shard, shard + more)
    assert not is_partial_file(path)
    partial = partial_file(path, "0123456789abcdef")
    assert is_partial_file(partial)
    assert parse_shard_file(partial) is None


@pytest.mark.parametrize(
    "path",
    [
        "layer_10/activations-00005-of-00005.tfrecord",
        "layer_10/activations-5-of-00098.tfrecord",
        "layer_10/activations-000005-of-00098.tfrecord",
        "layer_010/activations-00005-of-00098.tfrecord",
        "x/layer_10/activations-00005-of-00098.tfrecord",
        "layer_10/activations-00005-of-00098.tfrecord.gz",
        "layer_10/activations-00005-of-00098.tfrecord\n",
    ],
)
def test_other_names_are_not(path):
    assert parse_shard_file(path) is None


def test_a_partial_name_needs_a_unique_part():
    with pytest.raises(ValueError, match="'' is not 8 to 32 lower-case hexadecimal digits"):
        partial_file("metadata.json", "")


def test_every_bfloat16_widens_as_ml_dtypes_widens_it():
    expected = ALL_BFLOAT16.view(ml_dtypes.bfloat16).astype(np.float32)
    assert bfloat16_to_float32(ALL_BFLOAT16).tobytes() == expected.tobytes()


def test_every_bfloat16_survives_a_round_trip():
    finite = ~np.isnan(bfloat16_to_float32(ALL_BFLOAT16))
    back = float32_to_bfloat16(bfloat16_to_float32(ALL_BFLOAT16))
    np.testing.assert_array_equal(back[finite], ALL_BFLOAT16[finite])


def test_narrowing_rounds_as_ml_dtypes_rounds():
    """Around every bfloat16: just below, at and just above the tie, and next to the value."""
    bits = (ALL_BFLOAT16.astype(np.uint32) << 16)[:, None] + np.array(
        [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32
    )
    values = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(float32_to_bfloat16(values)[numbers], expected[numbers])
    nans = bfloat16_to_float32(float32_to_bfloat16(values)[~numbers])
    assert np.isnan(nans).all()
    np.testing.assert_array_equal(np.signbit(nans), np.signbit(values[~numbers]))


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2)))
def test_storage_of_each_input_dtype(values):
    narrow = values.astype(ml_dtypes.bfloat16)
    assert to_storage(values, "float32") is values
    np.testing.assert_array_equal(to_float32(to_storage(values, "float32")), values)
    np.testing.assert_array_equal(
        to_float32(to_storage(values, "bfloat16")), narrow.astype(np.float32)
    )
    for same in (narrow, narrow.view(np.uint16)):
        assert to_storage(same, "bfloat16").tobytes() == narrow.tobytes()
        np.testing.assert_array_equal(to_storage(same, "float32"), narrow.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=f"dtype {np.dtype(dtype)}; allowed are float32"):
        to_storage(np.zeros((2, 2), dtype), "float32")


def test_an_unknown_storage_dtype_is_refused():
    with pytest.raises(ValueError, match="'float16' is not one of float32, bfloat16"):
        to_storage(np.zeros((2, 2), np.float32), "float16")  # type: ignore[arg-type]
