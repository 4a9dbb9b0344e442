"""Statistics of captured vectors: computed on the device for each step, merged on the host.

A device gives one small array for each site: mean and M2 (the sum of squared deviations from that
mean) of its finite vectors, and the norm of each vector. That saves the host a pass over the
vectors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from activation_dataset.statistics import LayerStatistics
from activation_dataset.storage_dtype import to_float32
from qwen.layers.storage import dequantize

PADDING = -1.0
"""Stands for the norm of a place that holds no vector."""


def moments_of(vectors: jax.Array, real: jax.Array) -> jax.Array:
    """Compute the moments of one device's vectors, inside the jitted program.

    Args:
        vectors: [R, N, row elements], as they are stored.
        real: [R, N] bool, the places that hold a vector.

    Returns:
        [1, 2 * H + R * N] float32: mean, M2 and norms. The norm is NaN for a vector that is not
        finite, which is left out of mean and M2, and `PADDING` where there is no vector.
    """
    x = dequantize(vectors.reshape(-1, vectors.shape[-1])).astype(jnp.float32)
    real = real.reshape(-1)
    # Faster than isfinite on CPUs; 0 * inf is NaN. A maximum would lose NaN there.
    finite = (x * 0).sum(axis=-1) == 0
    norms = jnp.where(finite, jnp.sqrt(_sum(x * x, axis=1)), jnp.nan)
    counted = (real & finite)[:, None]
    count = jnp.maximum(counted.sum(), 1).astype(jnp.float32)
    mean = _sum(jnp.where(counted, x, 0), axis=0) / count
    deviations = jnp.where(counted, x - mean, 0)
    # The mean is rounded, so that the deviations do not quite sum to zero (Chan et al. 1983).
    m2 = _sum(deviations * deviations, axis=0) - _sum(deviations, axis=0) ** 2 / count
    return jnp.concatenate([mean, m2, jnp.where(real, norms, PADDING)])[None]


def statistics_of(moments: np.ndarray, vectors: np.ndarray) -> LayerStatistics:
    """Merge the moments of the devices, in the order of the mesh's data axis.

    Args:
        moments: [devices, 2 * H + places] float32, from `moments_of`.
        vectors: [n, row elements], the stored vectors; bfloat16 as ml_dtypes has it. Their
            statistics are computed here if float32 was too narrow for the moments.
    """
    bits = vectors.view(np.uint16) if vectors.dtype.name == "bfloat16" else vectors
    hidden = to_float32(bits[:0]).shape[1]
    total = LayerStatistics.empty(hidden)
    for part in moments:
        mean, m2, norms = np.split(part, [hidden, 2 * hidden])
        if not np.isfinite(part[: 2 * hidden]).all() or np.isinf(norms).any():
            return LayerStatistics.of_vectors(bits)
        # NaN is not less than 0, so vectors that are not finite stay.
        total = total.merge(LayerStatistics.of_moments(mean, m2, norms[~(norms < 0)]))
    return total


def _sum(x: jax.Array, axis: int) -> jax.Array:
    """Sum [n, m] over an axis in groups of about sqrt(n), whose rounding errors grow less."""
    size = x.shape[axis]
    group = 1
    while group * group < size and size % (2 * group) == 0:
        group *= 2
    groups = x.reshape(*x.shape[:axis], size // group, group, *x.shape[axis + 1 :])
    # The barrier keeps XLA from making one sum of the two.
    return jax.lax.optimization_barrier(groups.sum(axis=axis + 1)).sum(axis=axis)
