import copy
import hashlib
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.fields import FieldError
from activation_dataset.format import float32_to_bfloat16, to_float32
from activation_dataset.statistics import LayerStatistics, OrderedMerge
from activation_dataset.statistics_builder import BLOCK_ROWS, GROUP_BLOCKS, StatisticsBuilder


def statistics_of(rows, splits=()):
    builder = StatisticsBuilder(rows.shape[1])
    for piece in np.split(rows, sorted(splits)):
        builder.update(piece)
    return builder.result()


def assert_close(statistics, rows, rtol=3e-6):
    """Against float64 numpy; the mean on the scale of the deviation."""
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    assert statistics.count == len(rows)
    deviation = rows.std(axis=0)
    assert (np.abs(statistics.mean - rows.mean(axis=0)) <= rtol * deviation).all()
    np.testing.assert_allclose(statistics.variance, rows.var(axis=0), rtol=rtol)
    np.testing.assert_allclose(statistics.m2, rows.var(axis=0) * len(rows), rtol=rtol)
    np.testing.assert_allclose(statistics.mean_norm, norms.mean(), rtol=rtol)
    np.testing.assert_allclose(statistics.mean_squared_norm, (norms**2).mean(), rtol=rtol)
    np.testing.assert_allclose(statistics.max_norm, norms.max(), rtol=rtol)


def activations(count=1500, hidden=40, seed=0):
    """Dimension 1 has a mean of 100 deviations, dimension 2 massive outliers at few rows."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, hidden), dtype=np.float32)
    rows[:, 1] = 100 + rows[:, 1]
    rows[::97, 2] = 3000
    rows[:, 3] = -1e4 + 10 * rows[:, 3]
    return rows


def test_accurate_where_means_and_outliers_are_large():
    assert_close(statistics_of(activations()), activations())


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e12, 1e25])
def test_accurate_at_any_scale(scale):
    rows = activations() * np.float32(scale)
    assert_close(statistics_of(rows), rows)


@pytest.mark.parametrize("count", [1, 2, 3, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1])
@pytest.mark.parametrize("hidden", [1, 5, 127, 128, 129, 300])
def test_any_number_of_rows_and_columns(count, hidden):
    rows = np.random.default_rng(count).integers(-8, 8, (count, hidden)).astype(np.float32)
    statistics = statistics_of(rows)
    np.testing.assert_allclose(statistics.mean, rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics.variance, rows.var(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics.mean_squared_norm, (rows**2).sum(1).mean(), rtol=1e-6)


def test_a_constant_dimension_has_no_variance():
    rows = activations()
    rows[:, 0] = 0.1
    statistics = statistics_of(rows)
    assert statistics.variance[0] < 1e-16
    assert statistics.mean[0] == pytest.approx(np.float64(np.float32(0.1)), rel=1e-12)


def test_rows_that_are_not_finite_are_counted_and_left_out():
    rows = activations()
    finite = np.ones(len(rows), bool)
    for row, value in ((0, np.nan), (200, np.inf), (201, -np.inf), (1499, np.nan)):
        rows[row, row % 40] = value
        finite[row] = False
    rows[5] = 3e38  # finite, though its square is not in float32
    statistics = statistics_of(rows)
    assert statistics.nonfinite_count == 4
    assert_close(statistics, rows[finite])


def test_only_rows_that_are_not_finite():
    statistics = statistics_of(np.full((3, 4), np.nan, np.float32))
    assert (statistics.count, statistics.nonfinite_count) == (0, 3)
    assert statistics.merge(statistics_of(np.ones((2, 4), np.float32))).mean.tolist() == [1] * 4


def test_no_rows():
    assert statistics_of(np.empty((0, 4), np.float32)) == LayerStatistics.empty(4)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2500), max_size=8), st.booleans())
def test_the_same_bits_whatever_the_split(splits, narrow):
    rows = activations(GROUP_BLOCKS * BLOCK_ROWS + 452, 9)
    rows[65, 3] = np.inf
    stored = float32_to_bfloat16(rows) if narrow else rows
    assert statistics_of(stored, splits) == statistics_of(to_float32(stored))


def test_the_same_bits_wherever_the_rows_lie_in_memory():
    rows = activations()
    raw = np.empty(rows.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(rows.shape)
    unaligned[...] = rows
    assert statistics_of(unaligned) == statistics_of(rows)
    assert statistics_of(np.asfortranarray(rows)) == statistics_of(rows)


def test_the_same_bits_on_every_machine():
    """Stored once: numpy, a CPU or a change that moves a bit would fail datasets that are sound."""
    noise = np.arange(301_000, dtype=np.uint64).reshape(1000, 301) * 2654435761 % 2**32
    rows = (noise / 2**31 - 1).astype(np.float32)
    rows[:, :3] += np.float32(50)
    rows[400, 7] = 1e20
    text = json.dumps(statistics_of(rows).to_json())
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "59eaf68cc19e78c1044cd67a4d8d221c90136cf862ccaf48d561b675c21bad89"
    )


def test_rows_are_not_kept():
    rows = activations(BLOCK_ROWS + 5)
    builder = StatisticsBuilder(40)
    builder.update(rows)
    expected = builder.result()
    rows[...] = 0
    assert builder.result() == expected


def test_a_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"rows have shape \(2, 3\), expected \[n, 4\]"):
        StatisticsBuilder(4).update(np.zeros((2, 3), np.float32))


def test_rows_of_another_dtype_are_refused():
    builder = StatisticsBuilder(4)
    with pytest.raises(TypeError, match="rows are float64, expected float32, or uint16"):
        builder.update(np.zeros((2, 4)))
    builder.update(np.zeros((2, 4), np.float32))
    with pytest.raises(TypeError, match="rows are uint16 after float32"):
        builder.update(np.zeros((2, 4), np.uint16))


def test_merging_gives_the_statistics_of_all():
    rows = activations()
    parts = [statistics_of(part) for part in np.split(rows, [1, 500, 1400])]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert_close(merged, rows)


def test_merging_with_nothing_changes_nothing():
    statistics = statistics_of(activations())
    assert statistics.merge(LayerStatistics.empty(40)) == statistics
    assert LayerStatistics.empty(40).merge(statistics) == statistics
    with pytest.raises(ValueError, match="vectors of 40 and of 3 elements"):
        statistics.merge(LayerStatistics.empty(3))


SHARDS = [statistics_of(activations(20 + 3 * shard, 6, seed=shard)) for shard in range(13)]


@settings(max_examples=50)
@given(st.permutations(range(13)), st.lists(st.integers(0, 3), min_size=13, max_size=13))
def test_the_same_bits_whatever_the_order_of_shards(order, owners):
    """As Beam may do it: shards in any order into accumulators, which then merge in any order."""
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


def test_few_shards_wait_when_they_come_in_order():
    merge = OrderedMerge()
    for shard in range(5000):
        merge.add(shard, SHARDS[0])
        assert len(pickle.dumps(merge)) < 16 * 1000
    assert merge.result(5000).count == 5000 * SHARDS[0].count


def test_missing_surplus_and_repeated_shards_are_refused():
    merge = OrderedMerge()
    with pytest.raises(ValueError, match=r"have none"):
        merge.result(2)
    for shard in (0, 1, 3):
        merge.add(shard, SHARDS[shard])
    with pytest.raises(ValueError, match=r"3 shards do not make shards 0..3: have 0..1, 3"):
        merge.result(4)
    with pytest.raises(ValueError, match="shard 1 were added twice"):
        merge.add(1, SHARDS[1])
    with pytest.raises(ValueError, match="added twice"):
        merge.merge(copy.deepcopy(merge))
    merge.add(2, SHARDS[2])
    with pytest.raises(ValueError, match=r"4 shards do not make shards 0..2"):
        merge.result(3)
    assert merge.result(4).count == sum(SHARDS[shard].count for shard in range(4))


def test_json_keeps_every_bit():
    for statistics in (*SHARDS, LayerStatistics.empty(3)):
        text = json.dumps(statistics.to_json())
        assert LayerStatistics.from_json(json.loads(text)) == statistics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": -1}, r"statistics\.10\.count is -1, expected an integer of at least 0"),
        ({"count": True}, r"statistics\.10\.count is True, expected an integer"),
        ({"mean": [1.0, "a"]}, r"statistics\.10\.mean is a list of 2, expected a list of finite"),
        ({"mean": [1.0]}, r"statistics\.10\.variance has 6 elements, mean 1"),
        ({"max_norm": float("inf")}, r"statistics\.10\.max_norm is inf, expected a finite number"),
        ({"median": 1}, r"statistics\.10\.median is not a known field"),
    ],
)
def test_json_that_is_wrong_is_refused(change, message):
    with pytest.raises(FieldError, match=message):
        LayerStatistics.from_json(SHARDS[0].to_json() | change, "statistics.10")
