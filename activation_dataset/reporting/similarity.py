"""Similarity of sites, computed from the Gram matrices of the same vectors at each site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Likeness:
    """Comparison of sites on the same vectors.

    Attributes:
        vectors: number of compared vectors.
        alignment: [sites, sites] float64, linear centered kernel alignment: 1 if one site is a
            rotated, scaled and shifted copy of the other, about 0 if the sites are independent. The
            estimate is unbiased (Song et al. 2012; Nguyen, Raghu, Kornblith 2021). The biased
            estimate is always high for few vectors in many dimensions.
        dimensions: [sites] float64, participation ratio of the variance: the number of equal,
            independent directions with the same spread.
    """

    vectors: int
    alignment: NDArray[np.float64]
    dimensions: NDArray[np.float64]


def compare_sites(grams: Sequence[NDArray[np.floating]], kept: NDArray[np.bool_]) -> Likeness:
    """Compare sites on the same vectors.

    Args:
        grams: for each site, the dot products of the same n vectors, [n, n].
        kept: [n] bool, True for vectors to compare; at least 4.
    """
    centered = np.stack([_centered(gram[np.ix_(kept, kept)]) for gram in grams])
    sites, n, _ = centered.shape
    traces = np.trace(centered, axis1=1, axis2=2)
    squares = (centered**2).sum(axis=(1, 2))
    dimensions = traces**2 / np.where(squares > 0, squares, 1)

    flat = centered.reshape(sites, n * n)
    flat[:, :: n + 1] = 0
    sums = centered.sum(axis=1)
    totals = sums.sum(axis=1)
    products = flat @ flat.T
    products += np.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 * (sums @ sums.T) / (n - 2)
    norms = np.sqrt(np.maximum(np.diag(products), 0))
    scales = np.outer(norms, norms)
    alignment = np.divide(products, scales, out=np.zeros_like(products), where=scales > 0)
    return Likeness(n, alignment, dimensions)


def _centered(gram: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the Gram matrix of the vectors minus their mean."""
    wide = gram.astype(np.float64)
    means = wide.mean(axis=0)
    centered: NDArray[np.float64] = wide - means - means[:, None] + means.mean()
    return centered
