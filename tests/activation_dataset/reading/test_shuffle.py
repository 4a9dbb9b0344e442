import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation_dataset.reading.shuffle import CHUNKS, ROWS, deal, random_order, windows

SIZES = st.lists(st.integers(1, 50), max_size=60)


def test_an_order_is_known_forever():
    """These numbers may never change: saved states of training runs depend on them."""
    assert random_order(10, 7, CHUNKS, 3).tolist() == [2, 8, 9, 4, 0, 6, 7, 5, 1, 3]


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_an_order_is_a_permutation(count):
    assert sorted(random_order(count, 2**64 - 1, ROWS, 10**9, 10**9)) == list(range(count))


def test_orders_of_other_seeds_purposes_epochs_and_windows_differ():
    base = (0, CHUNKS, 0, 0)
    keys = [base, (1, *base[1:]), (0, ROWS, 0, 0), (0, CHUNKS, 1, 0), (0, CHUNKS, 0, 1)]
    orders = {tuple(random_order(1000, *key).tolist()) for key in keys}
    assert len(orders) == len(keys)


@given(SIZES, st.integers(1, 7))
def test_dealt_items_are_all_dealt_and_evenly(sizes, readers):
    dealt = deal(sizes, readers)
    assert len(dealt) == readers
    assert sorted(item for part in dealt for item in part) == list(range(len(sizes)))
    sums = [sum(sizes[item] for item in part) for part in dealt]
    assert max(sums) - min(sums) <= max(sizes, default=0)
    assert all(part == sorted(part) for part in dealt)


@given(SIZES, st.integers(1, 200))
def test_windows_cover_all_items_and_are_as_small_as_can_be(sizes, window):
    cuts = windows(sizes, window)
    assert [item for cut in cuts for item in range(cut.start, cut.stop)] == list(range(len(sizes)))
    for number, cut in enumerate(cuts):
        total = sum(sizes[cut])
        assert total >= window or number == len(cuts) - 1
        assert total - sizes[cut][-1] < window
