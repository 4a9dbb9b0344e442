"""Dtypes and scales of vectors."""

import sys

import numpy as np
import pytest

from activation_dataset import ActivationDataset, LayerStatistics
from activation_dataset.reading.vectors import element_dtype, normalization_factor
from tests.activation_dataset.synthetic import write_dataset


def values_of(path, sites, **options):
    return np.concatenate(
        [block.values for block in ActivationDataset(path).blocks(sites, **options)]
    )


@pytest.mark.parametrize("storage_dtype", ["float32", "bfloat16"])
def test_normalized_as_sae_lens_and_dictionary_learning_define_it(tmp_path, storage_dtype):
    write_dataset(tmp_path, [[30, 50], [20]], "none", storage_dtype)
    values = values_of(tmp_path, 10)
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    # SAELens, ActivationScaler.estimate_scaling_factor: sqrt(d_in) / mean norm.
    scaled = values_of(tmp_path, 10, normalize="sae_lens")
    np.testing.assert_allclose(scaled, values * (np.sqrt(8) / norms.mean()), rtol=1e-5)
    # dictionary_learning, get_norm_factor: x / sqrt(mean squared norm).
    scaled = values_of(tmp_path, 10, normalize="dictionary_learning")
    np.testing.assert_allclose(scaled, values / np.sqrt((norms**2).mean()), rtol=1e-5)


def test_normalization_that_is_not_possible(tmp_path):
    empty = LayerStatistics.empty(8)
    with pytest.raises(ValueError, match="all vectors of the site are 0"):
        normalization_factor(empty, "sae_lens")
    with pytest.raises(ValueError, match="'anthropic' is not one of sae_lens, dictionary_learning"):
        normalization_factor(empty, "anthropic")  # type: ignore[arg-type]
    write_dataset(tmp_path, [[3]], "none", "bfloat16")
    with pytest.raises(ValueError, match="dtype is 'bits', expected 'float32'"):
        values_of(tmp_path, 10, dtype="bits", normalize="sae_lens")


def test_dtypes_that_are_not_possible(monkeypatch):
    with pytest.raises(ValueError, match="'bits' needs a dataset stored in bfloat16, not float32"):
        element_dtype("bits", "float32")
    with pytest.raises(ValueError, match="'float16' is not one of float32, bfloat16, bits"):
        element_dtype("float16", "bfloat16")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match='pip install ml_dtypes, or request "bits"'):
        element_dtype("bfloat16", "bfloat16")
