import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.statistics import (
    TOLERANCE,
    LayerStatistics,
    OrderedMerge,
)
from activation_dataset.storage_dtype import to_float32
from tests.activation_dataset.synthetic import stored


def activations(count=1500, hidden=40, seed=0):
    """Return vectors with large means in dimensions 1 and 3, and few outliers in dimension 2."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, hidden), dtype=np.float32)
    rows[:, 1] = 100 + rows[:, 1]
    rows[::97, 2] = 3000
    rows[:, 3] = -1e4 + 10 * rows[:, 3]
    return rows


def assert_close(statistics, rows, rtol=1e-12):
    """Compare statistics with numpy in float64."""
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    assert statistics.count == len(rows) == statistics.norm_histogram.total
    np.testing.assert_allclose(statistics.mean, rows.mean(axis=0), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(statistics.variance, rows.var(axis=0), rtol=rtol)
    np.testing.assert_allclose(statistics.mean_norm, norms.mean(), rtol=rtol)
    np.testing.assert_allclose(statistics.mean_squared_norm, (norms**2).mean(), rtol=rtol)
    np.testing.assert_allclose(statistics.max_norm, norms.max(), rtol=rtol)


def device_statistics(rows):
    """Return statistics from float32 moments, as a device computes them in one step."""
    finite = np.isfinite(rows).all(axis=1)
    kept = np.where(finite[:, None], rows, np.float32(0))
    with np.errstate(over="ignore", invalid="ignore"):
        mean = kept.sum(axis=0) / np.float32(max(1, finite.sum()))
        deviations = np.where(finite[:, None], kept - mean, np.float32(0))
        m2 = np.add.accumulate(np.square(deviations), axis=0)[-1]  # The least accurate order.
        norms = np.sqrt(np.square(rows).sum(axis=1))
    return LayerStatistics.of_moments(mean, m2, np.where(finite, norms, np.float32(np.nan)))


@pytest.mark.parametrize("scale", [1e-25, 1, 1e30])
def test_vectors_at_any_scale(scale):
    rows = activations(30_000) * np.float32(scale)
    assert_close(LayerStatistics.of_vectors(rows), rows, 1e-9)


def test_vectors_that_are_not_finite_are_counted_and_left_out():
    rows = activations()
    finite = np.ones(len(rows), bool)
    for row, value in ((0, np.nan), (200, np.inf), (201, -np.inf), (1499, np.nan)):
        rows[row, row % 40] = value
        finite[row] = False
    statistics = device_statistics(rows)
    exact = LayerStatistics.of_vectors(rows)
    for each in (statistics, exact):
        assert (each.count, each.nonfinite_count) == (1496, 4)
    assert_close(exact, rows[finite], 1e-9)
    assert statistics.differences(exact) == []


def test_no_finite_vectors():
    rows = np.full((3, 4), np.nan, np.float32)
    for statistics in (device_statistics(rows), LayerStatistics.of_vectors(rows)):
        assert statistics == LayerStatistics.empty(4, nonfinite_count=3)
        whole = statistics.merge(LayerStatistics.of_vectors(np.ones((2, 4), np.float32)))
        assert (whole.mean.tolist(), whole.nonfinite_count) == ([1] * 4, 3)


def test_squares_that_overflow_in_float32():
    rows = activations()
    rows[5] = 3e38
    with pytest.raises(OverflowError, match=r"use LayerStatistics\.of_vectors"):
        device_statistics(rows)
    assert_close(LayerStatistics.of_vectors(rows), rows, 1e-9)


@pytest.mark.parametrize("storage_dtype", ["float32", "bfloat16"])
def test_moments_in_float32_are_within_the_tolerance(storage_dtype):
    steps = [to_float32(stored(activations(8192, seed=k), storage_dtype)) for k in range(4)]
    total = LayerStatistics.empty(40)
    for step in steps:
        total = total.merge(device_statistics(step))
    exact = LayerStatistics.of_vectors(np.concatenate(steps))
    assert total.differences(exact) == []
    assert exact.differences(exact) == []


EXACT = LayerStatistics.of_vectors(activations())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("nonfinite_count", lambda x: x + 1),
        ("mean", lambda x: x + 2 * TOLERANCE * np.sqrt(x**2 + EXACT.variance)),
        ("variance", lambda x: x * (1 + 3 * TOLERANCE)),
        ("mean_norm", lambda x: x * (1 + 2 * TOLERANCE)),
        ("mean_squared_norm", lambda x: x * (1 - 2 * TOLERANCE)),
        ("max_norm", lambda x: x * (1 - 2 * TOLERANCE)),
        (
            "norm_histogram",
            lambda x: LayerStatistics.of_vectors(activations() * 1.1).norm_histogram,
        ),
    ],
)
def test_differences_beyond_the_tolerance_are_named(name, change):
    changed = replace(EXACT, **{name: change(getattr(EXACT, name))})
    (difference,) = changed.differences(EXACT)
    assert difference.startswith(name)


@given(st.lists(st.integers(0, 1500), max_size=6))
def test_merging_gives_the_statistics_of_all(splits):
    merged = LayerStatistics.empty(40)
    for part in np.split(activations(), sorted(splits)):
        merged = merged.merge(LayerStatistics.of_vectors(part))
    assert_close(merged, activations(), 1e-9)


SHARDS = [
    LayerStatistics.of_vectors(activations(20 + 3 * shard, 6, seed=shard)) for shard in range(13)
]


@settings(max_examples=50)
@given(st.permutations(range(13)), st.lists(st.integers(0, 3), min_size=13, max_size=13))
def test_the_same_bits_whatever_the_order_of_shards(order, owners):
    """Beam may add shards to accumulators in any order, and merge the accumulators in any order."""
    accumulators = [OrderedMerge() for _ in range(4)]
    for shard, owner in zip(order, owners, strict=True):
        accumulators[owner].add(shard, SHARDS[shard])
    total = OrderedMerge()
    for accumulator in accumulators:
        total.merge(pickle.loads(pickle.dumps(accumulator)))  # noqa: S301
    in_order = OrderedMerge()
    for shard, statistics in enumerate(SHARDS):
        in_order.add(shard, statistics)
    assert total.result(13) == in_order.result(13)
    assert total.result(13).count == sum(each.count for each in SHARDS)


def test_missing_and_surplus_shards_are_refused():
    merge = OrderedMerge()
    for shard in (0, 1, 3):
        merge.add(shard, SHARDS[shard])
    for expected in (2, 4):
        with pytest.raises(ValueError, match=f"expected .* {expected} shards, got 3"):
            merge.result(expected)
