import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation_dataset.prompts import Prompt
from transforms.windows import windows, windows_of, with_bos


def document(num_tokens: int, turns: bool = False) -> Prompt:
    ids = np.arange(num_tokens, dtype=np.int32)
    cells = np.repeat(ids[:, None], 4, axis=1).astype(np.int16)
    return Prompt(
        *("d", "d", ids, cells), turns=ids.astype(np.int16) if turns else None, roles=("user",)
    )


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_every_token_is_chosen_in_one_window(num_tokens: int, size: int, data: st.DataObject):
    overlap = data.draw(st.integers(0, size - 1))
    chosen: list[int] = []
    for part in windows_of(document(num_tokens), size, overlap):
        assert part.num_tokens <= size
        assert part.sample_id == f"d@{part.offset}"
        assert part.token_ids.tolist() == [*range(part.offset, part.offset + part.num_tokens)]
        assert (part.cells == part.token_ids[:, None]).all()
        assert len(part.chosen_ids), "a window of repeated tokens alone"
        chosen += part.chosen_ids.tolist()
    assert chosen == [*range(num_tokens)]


def test_windows_are_full_but_the_last():
    assert [*windows(10, 4, 1)] == [(0, 4), (3, 7), (6, 10)]
    assert [*windows(9, 4, 0)] == [(0, 4), (4, 8), (8, 9)]
    assert [*windows(3, 4, 2)] == [(0, 3)]


@pytest.mark.parametrize("overlap", [0, 2])
def test_a_prepended_token_moves_the_others(overlap: int):
    *_, last = windows_of(document(7, turns=True), 5, overlap)
    moved = with_bos(last, 99)
    assert moved.prepended_bos
    assert moved.token_ids.tolist() == [99, *last.token_ids.tolist()]
    assert moved.chosen_ids.tolist() == [99, *last.chosen_ids.tolist()]
    assert moved.turns is not None
    assert last.turns is not None
    assert moved.turns.tolist() == [-1, *last.turns.tolist()]
    assert moved.cells[0].tolist() == [-1] * 4
