"""How much is explained, by an autoencoder and by principal components."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from examples.sparse_autoencoder import TopKAutoencoder

_ROWS = 4096

encode_on_device = nnx.jit(TopKAutoencoder.encode)


def codes_of(model: TopKAutoencoder, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, features] float32 of vectors [n, hidden]."""
    starts = range(0, len(vectors), _ROWS)
    parts = [
        np.asarray(encode_on_device(model, jnp.asarray(vectors[at : at + _ROWS]))) for at in starts
    ]
    return np.concatenate(parts)


def explained_variance(vectors: NDArray[np.float32], reconstructed: NDArray[np.float32]) -> float:
    """1 - sum of |x - x'|^2 / sum of |x - mean|^2, over vectors [n, hidden]."""
    variance = np.sum((vectors - vectors.mean(axis=0)) ** 2, dtype=np.float64)
    return 1 - float(np.sum((vectors - reconstructed) ** 2, dtype=np.float64) / variance)


def explained_by(model: TopKAutoencoder, vectors: NDArray[np.float32]) -> float:
    """Share of the variance of vectors [n, hidden] that the autoencoder explains."""
    return explained_variance(
        vectors, np.asarray(model.decode(jnp.asarray(codes_of(model, vectors))))
    )


def explained_by_components(
    learnt: NDArray[np.float32], judged: NDArray[np.float32], count: int
) -> float:
    """Share of the variance of `judged` that the `count` first principal components of `learnt`
    explain; [n, hidden] each. It is the best that the same directions for all vectors can do.
    """
    mean = learnt.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(learnt, rowvar=False))
    first = directions[:, -count:].astype(np.float32)
    return explained_variance(judged, (judged - mean) @ first @ first.T + mean)
