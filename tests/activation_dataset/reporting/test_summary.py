import numpy as np
import pytest

from activation_dataset.reporting.summary import (
    by_dimension,
    count_of,
    layer_table,
    layers_named,
    massive_dimensions,
    number,
    size,
    summaries,
)
from activation_dataset.statistics_builder import StatisticsBuilder
from tests.activation_dataset.reporting.grid_prompts import grid_prompt, write_prompted


@pytest.fixture
def metadata(tmp_path):
    """Layer 10: unit vectors but one of 30 and one of 300; layer 11: zeros and one NaN."""

    def vectors(layer, prompt):
        rows = np.zeros((prompt.num_tokens, 40), np.float32)
        if layer == 10:
            rows[np.arange(len(rows)), np.arange(len(rows)) % 40] = 1
            rows[3] *= 30
            rows[5] *= 300
        else:
            rows[7, 2] = np.nan
        return rows

    prompts = [grid_prompt("a.json#a/0", [(6, 6), (6, 6)])]
    return write_prompted(tmp_path, [prompts], vectors, hidden=40, layers=(10, 11))


def test_outliers_are_counted_by_multiples_of_the_median(metadata):
    layer = summaries(metadata)[0]
    assert layer.outliers == (2, 1)
    assert layer.median_norm == pytest.approx(1, rel=1 / 64)
    assert layer.max_norm == 300
    assert layer.max_to_median == pytest.approx(300, rel=1 / 64)
    others = layer.vectors - 2
    assert layer.mean_norm == pytest.approx((others + 330) / layer.vectors)
    assert layer.rms_norm == pytest.approx(np.sqrt((others + 30**2 + 300**2) / layer.vectors))


def test_a_layer_of_zeros_has_no_outliers(metadata):
    layer = summaries(metadata)[1]
    assert (layer.nonfinite, layer.outliers, layer.max_to_median) == (1, (0, 0), 0)
    assert layer.massive == ()
    head, groups = layer_table([layer])
    assert dict(zip(head, groups[""][0], strict=True))["non-finite"] == "1"


def test_massive_dimensions():
    rows = np.random.default_rng(0).standard_normal((500, 30)).astype(np.float32)
    rows[:, 7] *= 100
    rows[:, 4] -= 50
    builder = StatisticsBuilder(30)
    builder.update(rows)
    first, second = massive_dimensions(builder.result())
    assert (first.number, second.number) == (7, 4)
    squares = (rows.astype(float) ** 2).sum(axis=0)
    assert first.share == pytest.approx(squares[7] / squares.sum(), rel=1e-5)
    assert second.factor == pytest.approx(50, rel=0.1)


def test_dimensions_of_several_layers_come_together(metadata):
    layers = summaries(metadata)
    assert [where for _, where, _ in by_dimension([layers[0], layers[0]])] == [
        [10, 10] for _ in layers[0].massive
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.250"), (41.44, "41.4"), (12345.6, "12,346"), (3e-7, "3.00e-07")],
)
def test_numbers_have_three_digits_or_more(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (999_600, "1.00 MB"), (1.234e12, "1.23 TB")]
)
def test_sizes_are_decimal(value, text):
    assert size(value) == text


def test_layers_are_named_in_ranges():
    assert layers_named([10, 11, 12, 13]) == "10-13"
    assert layers_named([0, 4, 8, 9, 10]) == "0, 4, 8-10"


def test_nouns_agree_with_their_counts():
    assert [count_of(n, "shard") for n in (0, 1, 1200)] == ["0 shards", "1 shard", "1,200 shards"]
