import pytest

from activation_dataset.reading.shuffle import CHUNKS, ROWS, random_order


def test_an_order_is_known_forever():
    """These numbers must never change, because saved states of training runs depend on them."""
    assert random_order(10, 7, CHUNKS, 3).tolist() == [2, 8, 9, 4, 0, 6, 7, 5, 1, 3]


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_an_order_is_a_permutation(count):
    assert sorted(random_order(count, 2**64 - 1, ROWS, 10**9, 10**9)) == list(range(count))


def test_orders_of_other_seeds_purposes_epochs_and_windows_differ():
    base = (0, CHUNKS, 0, 0)
    keys = [base, (1, *base[1:]), (0, ROWS, 0, 0), (0, CHUNKS, 1, 0), (0, CHUNKS, 0, 1)]
    orders = {tuple(random_order(1000, *key).tolist()) for key in keys}
    assert len(orders) == len(keys)
