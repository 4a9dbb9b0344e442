"""How the layers' vectors resemble each other: kernel alignment, principal components.

All of it follows from the vectors' products with each other, the Gram matrices, which are small
however wide the model is. The same vectors must be in the same rows of every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Likeness:
    """Layers compared on the same vectors.

    Attributes:
        alignment: [layers, layers], see `aligned_kernels`.
        components: [layers, vectors, 2], the vectors on each layer's two principal components,
            scaled to a mean square of 1 and turned to resemble the layer before.
        explained: [layers, 2], the share of the variance along each of the two.
        dimensions: [layers], participation ratio of the variance: how many equal, independent
            directions would spread as much.
        vectors: [vectors] int64, which of the rows given were compared.
    """

    alignment: Float64Array
    components: Float64Array
    explained: Float64Array
    dimensions: Float64Array
    vectors: NDArray[np.int64]


def compare_layers(grams: Sequence[NDArray[np.float32]], kept: NDArray[np.bool_]) -> Likeness:
    """Compares layers.

    Args:
        grams: for each layer [n, n], the products of n vectors with each other.
        kept: [n], which of them to compare; at least 4.
    """
    chosen = np.flatnonzero(kept)
    within = np.ix_(chosen, chosen)
    centred = [_centred(gram[within].astype(np.float64)) for gram in grams]
    scores: list[Float64Array] = []
    explained = np.empty((len(grams), 2))
    dimensions = np.empty(len(grams))
    for place, gram in enumerate(centred):
        values, vectors = np.linalg.eigh(gram)
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        total = values.sum()
        explained[place] = values[:2] / total if total else 0
        dimensions[place] = total**2 / (values**2).sum() if total else 0
        plane = vectors[:, :2] * np.sqrt(values[:2])
        scale = np.sqrt((plane**2).sum(axis=1).mean())
        plane = plane / scale if scale else plane
        scores.append(_turned(plane, scores[-1]) if scores else _upright(plane))
    return Likeness(aligned_kernels(centred), np.stack(scores), explained, dimensions, chosen)


def aligned_kernels(grams: Sequence[Float64Array]) -> Float64Array:
    """[layers, layers]: linear centred kernel alignment of Gram matrices [n, n], n at least 4.

    1 where one layer is a rotated, scaled and shifted other one, about 0 for independent ones. It
    is the unbiased form (Song et al. 2012; Nguyen, Raghu, Kornblith 2021), without which few
    vectors of many dimensions always look alike.
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


def _centred(gram: Float64Array) -> Float64Array:
    """The Gram matrix of the same vectors around their mean."""
    means = gram.mean(axis=0)
    centred: Float64Array = gram - means - means[:, None] + means.mean()
    return centred


def _upright(plane: Float64Array) -> Float64Array:
    """With both axes pointing to where the points reach farther, since their sign means nothing."""
    signs: Float64Array = np.where(plane.max(axis=0) >= -plane.min(axis=0), 1.0, -1.0)
    return plane * signs


def _turned(plane: Float64Array, onto: Float64Array) -> Float64Array:
    """Rotated or mirrored to come close to another map of the same points."""
    u, _, vt = np.linalg.svd(plane.T @ onto)
    turned: Float64Array = plane @ (u @ vt)
    return turned
