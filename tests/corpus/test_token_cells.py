import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from corpus.token_cells import NO_CELL, token_cells


def cells_at(*offsets: int) -> np.ndarray:
    """A cell at each offset: its example is its number, its row twice that, and so on."""
    numbers = np.arange(len(offsets))
    columns = [np.array(offsets, int), numbers, numbers % 2, 2 * numbers, 3 * numbers]
    return np.stack(columns, axis=-1).astype(np.int32).reshape(-1, 5)


def offsets_of(*lengths: int) -> np.ndarray:
    """Tokens of so many characters, end to end."""
    ends = np.cumsum(lengths)
    return np.stack([ends - lengths, ends], axis=-1).astype(np.int64).reshape(-1, 2)


@given(
    st.lists(st.integers(1, 5), max_size=30),
    st.sets(st.integers(0, 80)),
    st.integers(0, 3),
)
def test_a_token_is_the_first_cell_that_it_covers(lengths: list[int], places: set[int], gap: int):
    cells = cells_at(*sorted(places))
    offsets = offsets_of(*lengths)
    offsets[:, 1] -= np.minimum(gap, np.array(lengths, int))  # characters that no token covers
    shown = token_cells(cells, offsets)
    assert shown.dtype == np.int16
    assert shown.shape == (len(lengths), 4)
    for (start, end), found in zip(offsets.tolist(), shown.tolist(), strict=True):
        covered = [cell[1:] for cell in cells.tolist() if start <= cell[0] < end]
        assert found == (covered[0] if covered else [NO_CELL] * 4)


def test_tokens_that_share_one_character_do_not_hide_a_cell():
    # A character of several bytes can be several tokens, each with the character's offsets.
    offsets = np.array([[0, 1], [0, 1], [0, 1], [1, 2]])
    assert token_cells(cells_at(1), offsets)[:, 0].tolist() == [-1, -1, -1, 0]
