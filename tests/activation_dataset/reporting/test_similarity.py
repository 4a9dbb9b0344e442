import numpy as np
import pytest

from activation_dataset.reporting.similarity import compare_sites

RNG = np.random.default_rng(0)


def compare(*sites):
    return compare_sites([rows @ rows.T for rows in sites], np.ones(len(sites[0]), np.bool_))


def rotation(size):
    return np.linalg.qr(RNG.standard_normal((size, size)))[0]


def test_a_rotated_scaled_and_shifted_layer_is_the_same_layer():
    rows = RNG.standard_normal((60, 20))
    likeness = compare(rows, 3 * rows @ rotation(20) + 5)
    np.testing.assert_allclose(likeness.alignment, 1, atol=1e-3)


def test_alignment_is_the_unbiased_estimate():
    """The estimate is defined as the mean of products over quadruples of different vectors."""
    a, b = RNG.standard_normal((6, 3)), RNG.standard_normal((6, 2))
    k, m = a @ a.T, b @ b.T

    def criterion(k, m):
        places = [each for each in np.ndindex(6, 6, 6, 6) if len({*each}) == 4]
        return np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in places])

    expected = criterion(k, m) / np.sqrt(criterion(k, k) * criterion(m, m))
    assert compare(a, b).alignment[0, 1] == pytest.approx(expected)


def test_the_spread_is_that_of_the_covariance():
    rows = RNG.standard_normal((300, 5)) * [9, 4, 1, 1, 1] @ rotation(5) + 2
    values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))
    expected = values.sum() ** 2 / (values**2).sum()
    assert compare(rows).dimensions[0] == pytest.approx(expected)


def test_only_what_is_kept_is_compared():
    rows = RNG.standard_normal((40, 6))
    kept = np.arange(40) % 3 > 0
    broken = np.where(kept[:, None], rows, 1e6)
    a, b = (compare_sites([each @ each.T] * 2, kept) for each in (rows, broken))
    np.testing.assert_allclose(a.dimensions, b.dimensions)
    assert a.vectors == kept.sum()


def test_vectors_that_are_all_alike_have_no_spread():
    likeness = compare(*[np.ones((20, 4))] * 2)
    assert np.isfinite(likeness.alignment).all()
    np.testing.assert_allclose(likeness.dimensions, 0, atol=1e-6)
