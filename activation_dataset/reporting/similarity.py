"""Likeness of sites, from the Gram matrices of the same vectors at each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Likeness:
    """Comparison of sites on the same vectors.

    Attributes:
        vectors: number of vectors that were compared.
        alignment: [sites, sites], see `aligned_kernels`.
        dimensions: [sites], participation ratio of the variance: how many equal, independent
            directions would spread as much.
    """

    vectors: int
    alignment: Float64Array
    dimensions: Float64Array


def compare_sites(grams: Sequence[NDArray[np.float32]], kept: NDArray[np.bool_]) -> Likeness:
    """Compares sites.

    Args:
        grams: for each site [n, n], products of the same n vectors with each other.
        kept: [n] bool, which vectors to compare; at least 4.
    """
    within = np.ix_(kept, kept)
    centered = [_centered(gram[within].astype(np.float64)) for gram in grams]
    traces = np.array([np.trace(gram) for gram in centered])
    squares = np.array([(gram**2).sum() for gram in centered])
    dimensions = traces**2 / np.where(squares > 0, squares, 1)
    return Likeness(int(kept.sum()), aligned_kernels(centered), dimensions)


def aligned_kernels(grams: Sequence[Float64Array]) -> Float64Array:
    """Linear centered kernel alignment of Gram matrices.

    1 if one site is a rotated, scaled and shifted copy of the other, about 0 if they are
    independent. The estimate is unbiased (Song et al. 2012; Nguyen, Raghu, Kornblith 2021); the
    biased one finds that few vectors in many dimensions are always alike.

    Args:
        grams: one [n, n] matrix for each site, n at least 4.

    Returns:
        [sites, sites] float64.
    """
    n = len(grams[0])
    flat = np.stack(grams).reshape(len(grams), n * n)
    flat[:, :: n + 1] = 0
    sums = flat.reshape(len(grams), n, n).sum(axis=1)
    totals = sums.sum(axis=1)
    products = flat @ flat.T
    products += np.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 * (sums @ sums.T) / (n - 2)
    norms = np.sqrt(np.maximum(np.diag(products), 0))
    scales = np.outer(norms, norms)
    aligned: Float64Array = np.zeros_like(products)
    np.divide(products, scales, out=aligned, where=scales > 0)
    return aligned


def _centered(gram: Float64Array) -> Float64Array:
    """Gram matrix of the same vectors around their mean."""
    means = gram.mean(axis=0)
    centered: Float64Array = gram - means - means[:, None] + means.mean()
    return centered
