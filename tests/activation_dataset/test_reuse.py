from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from activation_dataset.reading.in_order import map_in_order
from activation_dataset.reuse import ReusedArrays


def test_memory_is_used_again_when_nobody_looks_at_it(monkeypatch):
    sizes = []
    empty = np.empty

    def counted(size, dtype):
        sizes.append(size)
        return empty(size, dtype)

    monkeypatch.setattr(np, "empty", counted)
    arrays = ReusedArrays(kept=2)
    for _ in range(20):
        array = arrays.take((4, 5), np.float32)
        view = array[1:]
        del array
        other = arrays.take((2, 2), np.uint16)
        assert not np.shares_memory(view, other)
        del view, other
    assert len(sizes) == 2


def test_arrays_start_where_a_cache_line_does():
    arrays = ReusedArrays(kept=2)
    held = [arrays.take((size, 3), np.float32) for size in (1, 9, 1000)]
    assert [array.ctypes.data % 64 for array in held] == [0, 0, 0]


def test_what_is_held_is_never_given_out():
    arrays = ReusedArrays(kept=2)
    held = [arrays.take((size, 3), np.int64) for size in (1, 9, 3, 20, 2)]
    for number, array in enumerate(held):
        array[...] = number
    assert [array.ravel().tolist() for array in held] == [
        [number] * array.size for number, array in enumerate(held)
    ]


def test_threads_do_not_share_an_array():
    arrays = ReusedArrays()

    def fill(number):
        array = arrays.take((1000,), np.int64)
        array[...] = number
        return bool((array == number).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fill, range(500)))


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order(threads):
    assert list(map_in_order(lambda x: x * x, range(50), threads)) == [x * x for x in range(50)]
    assert list(map_in_order(str, [], threads)) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_in_its_place(threads):
    results = map_in_order(lambda x: 10 // x, [5, 2, 0, 1], threads)
    assert next(results) == 2
    assert next(results) == 5
    with pytest.raises(ZeroDivisionError):
        next(results)
