import numpy as np
import pytest

from activation_dataset.reporting.similarity import aligned_kernels, compare_sites

RNG = np.random.default_rng(0)


def gram(rows):
    return (rows @ rows.T).astype(np.float32)


def rotation(size):
    return np.linalg.qr(RNG.standard_normal((size, size)))[0]


def test_a_rotated_scaled_and_shifted_layer_is_the_same_layer():
    rows = RNG.standard_normal((60, 20))
    likeness = compare_sites([gram(rows), gram(3 * rows @ rotation(20) + 5)], np.ones(60, np.bool_))
    np.testing.assert_allclose(likeness.alignment, 1, atol=1e-3)


def test_independent_layers_are_not_alike_though_dimensions_are_many():
    a, b = RNG.standard_normal((100, 400)), RNG.standard_normal((100, 400))
    aligned = compare_sites([gram(a), gram(b)], np.ones(100, np.bool_)).alignment
    assert abs(aligned[0, 1]) < 0.05
    np.testing.assert_allclose(np.diag(aligned), 1)


def test_alignment_is_the_unbiased_estimate():
    """Against the definition: mean of products over quadruples of different vectors."""
    a, b = RNG.standard_normal((6, 3)), RNG.standard_normal((6, 2))
    k, m = a @ a.T, b @ b.T

    def criterion(k, m):
        total, count = 0.0, 0
        for i, j, q, r in np.ndindex(6, 6, 6, 6):
            if len({i, j, q, r}) == 4:
                total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
                count += 1
        return total / count

    expected = criterion(k, m) / np.sqrt(criterion(k, k) * criterion(m, m))
    assert aligned_kernels([k, m])[0, 1] == pytest.approx(expected)


def test_the_spread_is_that_of_the_covariance():
    rows = RNG.standard_normal((300, 5)) * [9, 4, 1, 1, 1] @ rotation(5) + 2
    likeness = compare_sites([gram(rows)], np.ones(300, np.bool_))
    values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))
    np.testing.assert_allclose(
        likeness.dimensions[0], values.sum() ** 2 / (values**2).sum(), rtol=1e-3
    )


def test_only_what_is_kept_is_compared():
    rows = RNG.standard_normal((40, 6))
    kept = np.arange(40) % 3 > 0
    broken = np.where(kept[:, None], rows, 1e6)
    a, b = (compare_sites([gram(each)] * 2, kept) for each in (rows, broken))
    np.testing.assert_allclose(a.dimensions, b.dimensions)
    assert a.vectors == kept.sum()


def test_vectors_that_are_all_alike_have_no_spread():
    likeness = compare_sites([gram(np.ones((20, 4)))] * 2, np.ones(20, np.bool_))
    assert np.isfinite(likeness.alignment).all()
    np.testing.assert_allclose(likeness.dimensions, 0, atol=1e-6)
