import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from activation_dataset.layout import Layout, runs

RECORDS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 700)), min_size=1, max_size=40)


@given(RECORDS, st.integers(1, 8), st.data())
def test_runs_hold_every_wanted_vector_once(records, factor, data):
    vectors, sizes = map(np.array, zip(*records, strict=True))
    starts = np.append(0, np.cumsum(sizes))[None]
    ends = np.append(0, np.cumsum(vectors))
    layout = Layout((8,), starts, np.zeros((1, len(records)), np.int32), ends)
    total = int(ends[-1])
    only = data.draw(st.none() | st.sets(st.integers(0, total - 1)) if total else st.none())
    wanted = None if only is None else np.array(sorted(only), np.int64)
    found = runs(layout, 200, 200 * factor, wanted)
    numbers = zip(found.starts.tolist(), found.stops.tolist(), strict=True)
    held = [number for start, stop in numbers for number in range(start, stop)]
    assert len(set(held)) == len(held)
    assert set(held) >= (set(range(total)) if only is None else only)
    assert found.wanted.sum() == (total if only is None else len(only))
    offsets = starts[0]
    assert all(
        offsets[last - 1] - offsets[first] < 200 * factor
        for first, last in zip(found.firsts, found.lasts, strict=True)
    )
