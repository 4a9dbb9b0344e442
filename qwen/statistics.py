"""Statistics of captured vectors, computed per step on the device and merged on the host.

A device returns one small array for each site: mean and M2 (the sum of squared deviations from the
mean) of its finite vectors, and the norm of each vector. This saves the host a pass over the
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
"""Norm of a place without a vector."""


def moments_of(vectors: jax.Array, real: jax.Array) -> jax.Array:
    """Compute the moments of one device's vectors, inside the jitted program.

    Args:
        vectors: [R, N, row elements], as they are stored.
        real: [R, N] bool, True for places with a vector.

    Returns:
        [1, 2 * H + R * N] float32: mean, M2 and norms. A vector that is not finite has the norm NaN
        and does not count toward mean and M2. A place without a vector has the norm `PADDING`.
    """
    x = dequantize(vectors.reshape(-1, vectors.shape[-1])).astype(jnp.float32)
    real = real.reshape(-1)
    # Faster than isfinite on CPUs, where a maximum may lose NaN; 0 * inf is NaN.
    finite = (x * 0).sum(axis=-1) == 0
    norms = jnp.where(finite, jnp.sqrt(_sum(x * x, axis=1)), jnp.nan)
    counted = (real & finite)[:, None]
    count = jnp.maximum(counted.sum(), 1).astype(jnp.float32)
    mean = _sum(jnp.where(counted, x, 0), axis=0) / count
    deviations = jnp.where(counted, x - mean, 0)
    # The mean is rounded, so the deviations do not sum to exactly zero (Chan et al. 1983).
    m2 = _sum(deviations * deviations, axis=0) - _sum(deviations, axis=0) ** 2 / count
    return jnp.concatenate([mean, m2, jnp.where(real, norms, PADDING)])[None]


def statistics_of(moments: np.ndarray, vectors: np.ndarray) -> LayerStatistics:
    """Merge the moments of the devices, in the order of the mesh's data axis.

    Args:
        moments: [devices, 2 * H + places] float32, from `moments_of`.
        vectors: [n, row elements], the stored vectors; bfloat16 is the dtype of ml_dtypes. If the
            moments overflow float32, the statistics are computed from these vectors.
    """
    bits = vectors.view(np.uint16) if vectors.dtype.name == "bfloat16" else vectors
    hidden = to_float32(bits[:0]).shape[1]
    total = LayerStatistics.empty(hidden)
    for part in moments:
        mean, m2, norms = np.split(part, [hidden, 2 * hidden])
        if not np.isfinite(part[: 2 * hidden]).all() or np.isinf(norms).any():
            return LayerStatistics.of_vectors(bits)
        # NaN is not less than 0, so norms of vectors that are not finite are kept.
        total = total.merge(LayerStatistics.of_moments(mean, m2, norms[~(norms < 0)]))
    return total


def _sum(x: jax.Array, axis: int) -> jax.Array:
    """Sum [n, m] over an axis in groups of about sqrt(n), which reduces rounding errors."""
    size = x.shape[axis]
    group = 1
    while group * group < size and size % (2 * group) == 0:
        group *= 2
    groups = x.reshape(*x.shape[:axis], size // group, group, *x.shape[axis + 1 :])
    # The barrier keeps XLA from merging the two sums.
    return jax.lax.optimization_barrier(groups.sum(axis=axis + 1)).sum(axis=axis)
