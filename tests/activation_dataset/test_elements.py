import sys

import ml_dtypes
import numpy as np
import pytest

from activation_dataset import ActivationDataset, native
from activation_dataset.elements import (
    _widening,
    element_dtype,
    gather,
    normalising_factor,
    put,
    scatter,
)
from activation_dataset.format import bfloat16_to_float32, float32_to_bfloat16
from activation_dataset.reuse import ReusedArrays
from activation_dataset.statistics import LayerStatistics
from tests.activation_dataset.synthetic import write_dataset


@pytest.mark.parametrize("by", ["library", "ml_dtypes", "numpy alone"])
def test_every_bfloat16_is_widened_exactly(by, monkeypatch):
    if by == "library" and native.library is None:
        pytest.skip("the library is not built here")
    if by != "library":
        monkeypatch.setattr(native, "library", None)
    if by == "numpy alone":
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    _widening.cache_clear()
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    out = np.empty((256, 3, 256), np.float32)
    put(bits, out[:, 1])
    np.testing.assert_array_equal(
        out[:, 1].view(np.uint32), bfloat16_to_float32(bits).view(np.uint32)
    )
    _widening.cache_clear()


@pytest.mark.parametrize("hidden", [1, 7, 8, 13, 64, 896])
@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize(
    ("stored", "given"),
    [(np.float32, np.float32), (np.uint16, np.float32), (np.uint16, np.uint16)],
    ids=["float32", "widened", "bits"],
)
def test_the_rows_that_are_chosen(stored, given, factor, hidden, monkeypatch):
    if factor != 1 and given != np.float32:
        return
    rng = np.random.default_rng(hidden)
    values = rng.standard_normal((300, hidden), np.float32)
    values[::50] = np.nan
    rows = float32_to_bfloat16(values) if stored == np.uint16 else values
    chosen = rng.integers(300, size=257)
    found = []
    for library in {native.library, None}:
        monkeypatch.setattr(native, "library", library)
        out = np.zeros((257, 2, hidden), given)
        gather(rows, chosen, out[:, 1], factor)
        assert not out[:, 0].any()
        expected = np.empty((257, hidden), given)
        put(rows[chosen], expected, factor)
        np.testing.assert_array_equal(out[:, 1], expected)
        found.append(out.tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize("hidden", [1, 7, 13, 64, 896])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("first", [0, 1], ids=["aligned", "not aligned"])
def test_the_places_that_are_chosen(dtype, hidden, first, monkeypatch):
    rng = np.random.default_rng(hidden)
    stored = rng.integers(1 << 16, size=(100, hidden)).astype(dtype)
    places = rng.permutation(300)[:100]
    expected = np.zeros((300, hidden), dtype)
    expected[places] = stored
    for library in {native.library, None}:
        monkeypatch.setattr(native, "library", library)
        memory = ReusedArrays().take((first + 300 * hidden,), dtype)
        memory[...] = 0
        out = memory[first:].reshape(300, hidden)
        scatter(stored, out, places)
        np.testing.assert_array_equal(out, expected)


def test_bits_stay_bits():
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    for dtype in (np.dtype(np.uint16), np.dtype(ml_dtypes.bfloat16)):
        out = np.empty((256, 2, 256), dtype)
        put(bits, out[:, 1])
        np.testing.assert_array_equal(out[:, 1].view(np.uint16), bits)


def test_dtypes_that_cannot_be_had():
    assert element_dtype("float32", "bfloat16") == np.float32
    assert element_dtype("bfloat16", "bfloat16") == ml_dtypes.bfloat16
    with pytest.raises(ValueError, match="'bits' needs a dataset stored in bfloat16, not float32"):
        element_dtype("bits", "float32")
    with pytest.raises(ValueError, match="'float16' is not one of float32, bfloat16, bits"):
        element_dtype("float16", "bfloat16")  # type: ignore[arg-type]


def values_of(path, **options):
    return np.concatenate(
        [block.values.copy() for block in ActivationDataset(path).blocks(**options)]
    )


def test_bfloat16_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match=r'pip install ml_dtypes, or ask for "bits"'):
        element_dtype("bfloat16", "bfloat16")


@pytest.mark.parametrize("storage_dtype", ["float32", "bfloat16"])
def test_normalised_as_sae_lens_and_dictionary_learning_define_it(tmp_path, storage_dtype):
    write_dataset(tmp_path, [[30, 50], [20]], "none", storage_dtype)
    values = values_of(tmp_path, layers=10)
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    # SAELens, ActivationScaler.estimate_scaling_factor: sqrt(d_in) / mean norm.
    scaled = values_of(tmp_path, layers=10, normalise="sae_lens")
    np.testing.assert_allclose(scaled, values * (np.sqrt(8) / norms.mean()), rtol=1e-5)
    # dictionary_learning, get_norm_factor: x / sqrt(mean squared norm).
    scaled = values_of(tmp_path, layers=10, normalise="dictionary_learning")
    np.testing.assert_allclose(scaled, values / np.sqrt((norms**2).mean()), rtol=1e-5)


def test_each_layer_has_its_own_factor(tmp_path):
    write_dataset(tmp_path, [[30, 50], [20]], "none", "bfloat16")
    both = values_of(tmp_path, layers=[12, 10], normalise="sae_lens")
    for place, layer in enumerate((12, 10)):
        alone = values_of(tmp_path, layers=layer, normalise="sae_lens")
        np.testing.assert_array_equal(both[:, place], alone)


def test_what_cannot_be_normalised(tmp_path):
    with pytest.raises(ValueError, match="nothing to normalise by"):
        normalising_factor(LayerStatistics.empty(8), "sae_lens")
    with pytest.raises(ValueError, match="'anthropic' is not one of sae_lens, dictionary_learning"):
        normalising_factor(LayerStatistics.empty(8), "anthropic")  # type: ignore[arg-type]
    write_dataset(tmp_path, [[3]], "none", "bfloat16")
    with pytest.raises(ValueError, match="normalised values are float32, not 'bits'"):
        list(ActivationDataset(tmp_path).blocks(10, dtype="bits", normalise="sae_lens"))
