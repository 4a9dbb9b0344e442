"""Statistics that come with vectors, against those computed from the vectors in float64."""

from __future__ import annotations

import numpy as np

from activation_dataset.statistics import LayerStatistics

RELATIVE_ERROR = 1e-6


def assert_close_statistics(found: LayerStatistics, vectors: np.ndarray) -> None:
    """Compare counts exactly, the others to about float32's precision.

    Args:
      vectors: [n, hidden] float32 or bfloat16.
    """
    bits = vectors if vectors.dtype == np.float32 else vectors.view(np.uint16)
    expected = LayerStatistics.of_vectors(bits)
    assert (found.count, found.nonfinite_count) == (expected.count, expected.nonfinite_count)
    assert found.norm_histogram.total == found.count
    rms = np.sqrt(expected.variance + expected.mean**2)
    assert (np.abs(found.mean - expected.mean) <= RELATIVE_ERROR * rms).all()
    # The mean of a device's vectors is rounded before the devices are merged.
    tolerance = RELATIVE_ERROR * np.sqrt(expected.variance) * rms
    assert (np.abs(found.variance - expected.variance) <= tolerance).all()
    for name in ("mean_norm", "mean_squared_norm", "max_norm"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert abs(ours - theirs) <= RELATIVE_ERROR * theirs, name
