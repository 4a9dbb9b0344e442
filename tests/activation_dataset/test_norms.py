import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation_dataset.fields import FieldError
from activation_dataset.norms import NormHistogram, lower_edge

NORMS = st.lists(st.floats(0, 1e40), max_size=50).map(lambda norms: np.array(norms, np.float64))


@given(st.floats(0, 1e40))
def test_a_norm_is_between_the_edges_of_its_bin(norm):
    ((number, count),) = NormHistogram.of(np.array([norm])).counts.items()
    assert count == 1
    assert lower_edge(number) <= norm < lower_edge(number + 1)


@pytest.mark.parametrize("q", [0.0, 0.01, 0.25, 0.5, 0.99, 1.0])
def test_quantiles_are_within_a_bin(q):
    norms = np.random.default_rng(0).lognormal(3, 1, 1001)
    exact = np.quantile(norms, q, method="inverted_cdf")
    assert abs(NormHistogram.of(norms).quantile(q) / exact - 1) < 1 / 127


def test_sinks_are_counted():
    norms = np.array([1.0] * 90 + [9.5, 10.5, 50, 99, 101, 1000])
    histogram = NormHistogram.of(norms)
    median = histogram.median
    assert histogram.count_from(10 * median) == 5
    assert histogram.count_from(100 * median) == 2
    assert histogram.count_from(0) == len(norms) == histogram.total


@given(NORMS)
def test_near_histograms_differ_by_at_most_one_bin(norms):
    histogram = NormHistogram.of(norms)
    assert histogram.near(histogram)
    a_little_off = NormHistogram.of(norms * (1 + 1e-3))
    assert histogram.near(a_little_off)
    assert a_little_off.near(histogram)
    if len(norms) and norms.max() > 1e-300:
        assert not histogram.near(NormHistogram.of(norms * 1.1))
        assert not NormHistogram.of(norms * 1.1).near(histogram)


@pytest.mark.parametrize("value", [{"-1": 1}, {"01": 1}, {"x": 1}, {"131008": 1}, {"1": 0}])
def test_an_invalid_histogram_is_refused(value):
    with pytest.raises(FieldError, match="norms"):
        NormHistogram.from_json(value, "norms")
