from dataclasses import replace

import numpy as np
import pytest

from activation_dataset.certify import (
    CertifyError,
    certify,
    compare,
    default_tolerance,
    pooled,
)
from tests.activation_dataset.synthetic import describe, write_dataset


def vectors(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float64)


def test_the_worst_vector_counts():
    both = vectors([3, 4], [0, 0], [1e-30, 0])
    assert compare(both.astype(np.float32), both).relative_error <= 1e-7
    stored = vectors([1, 0], [3, 4.5], [0, 2]).astype(np.float32)
    parity = compare(stored, vectors([1, 0], [3, 4], [0, 2]))
    assert parity.relative_error == pytest.approx(0.5 / 5)
    assert parity.cosine == pytest.approx((9 + 18) / (5 * np.hypot(3, 4.5)))


@pytest.mark.parametrize("wrong", [[np.nan, 0], [np.inf, 0]])
def test_nonfinite_values_never_pass(wrong: list[float]):
    stored, reference = vectors(wrong).astype(np.float32), vectors([1, 0])
    assert compare(stored, reference).relative_error == np.inf
    assert compare(reference.astype(np.float32), vectors(wrong)).relative_error == np.inf
    zero = compare(vectors([1, 0]).astype(np.float32), vectors([0, 0]))
    assert (zero.relative_error, zero.cosine) == (np.inf, 0)


def test_another_shape_is_an_error():
    with pytest.raises(CertifyError, match=r"shape \(1, 2\), the model returns \(2, 2\)"):
        compare(np.zeros((1, 2), np.float32), np.zeros((2, 2)))


def test_pooling_is_that_of_the_records():
    tokens = np.array([[1, 2], [3, 4], [5, 9]], np.float32)
    every = np.ones(len(tokens), bool)
    assert pooled(tokens, "last", every).tolist() == [[5, 9]]
    assert pooled(tokens, "mean", every).tolist() == [[3, 5]]
    assert pooled(tokens, "none", every).tolist() == tokens.tolist()
    first = np.arange(len(tokens)) == 0
    assert pooled(tokens, "mean", first).tolist() == tokens[:1].tolist()
    assert pooled(tokens, "none", first).tolist() == tokens[:1].tolist()


def test_the_tolerance_is_what_rounding_explains():
    """tests/end_to_end/test_certify.py covers the other dtypes."""
    run = replace(describe("last", "bfloat16", 8), compute_dtype="float32")
    assert default_tolerance(run) == 5e-3
    assert default_tolerance(replace(run, compute_dtype="bfloat16")) == 0.045


def test_a_folder_without_a_model_is_refused(tmp_path):
    write_dataset(tmp_path, [[3]])
    with pytest.raises(CertifyError, match=r"no config\.json.*qwen\.export_preset"):
        certify(tmp_path, tmp_path)
    with pytest.raises(CertifyError, match="no sample to compare"):
        certify(tmp_path, tmp_path, samples=0)
