import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.token_cells import NO_CELL, UNKNOWN_CELL, token_cells


def cells_at(offsets: list[int]) -> np.ndarray:
    """Return a cell at each offset, whose example, role, row and column follow from its number."""
    numbers = np.arange(len(offsets))
    columns = [np.array(offsets, int), numbers, numbers % 2, 2 * numbers, 3 * numbers]
    return np.stack(columns, axis=-1).astype(np.int32).reshape(-1, 5)


def shown(parts: list[str], cells: np.ndarray, text: str | None = None) -> np.ndarray:
    """Return the cells of tokens with these texts; equal texts have equal ids."""
    known = sorted({*parts})
    token_ids = np.array([known.index(part) for part in parts], np.int32)
    return token_cells(
        "".join(parts) if text is None else text, cells, token_ids, known.__getitem__
    )


@given(st.lists(st.text("01²x é\n", min_size=0, max_size=3), max_size=30), st.randoms())
def test_every_cell_has_a_token_of_its_own_or_all_are_unknown(parts: list[str], random):
    text = "".join(parts)
    digits = [match.start() for match in re.finditer("[0-9]", text)]
    cells = cells_at(sorted(random.sample(digits, random.randint(0, len(digits)))))
    found = shown(parts, cells)
    assert found.dtype == np.int16
    assert found.shape == (len(parts), 4)
    start, expected = 0, []
    for part in parts:
        inside = [cell[1:] for cell in cells.tolist() if start <= cell[0] < start + len(part)]
        several = len(re.findall("[0-9]", part)) > 1
        expected.append(
            [UNKNOWN_CELL] * 4 if inside and several else (inside or [[NO_CELL] * 4])[0]
        )
        start += len(part)
    if [UNKNOWN_CELL] * 4 in expected:
        expected = [[UNKNOWN_CELL] * 4] * len(parts)
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["1", "<unk>", "3"], "123"),
        (["1", "3"], "123"),
        (["1", "2", "3", "3"], "123"),
        (["1", "3", "2"], "123"),
        (["1", "2", "3", "2"], "123²"),
        ([], "123"),
    ],
    ids=["unknown", "fewer", "more", "in another order", "normalized", "none"],
)
def test_tokens_with_other_digits_than_the_text_show_no_known_cell(parts: list[str], text: str):
    found = shown(parts, cells_at([0, 1, 2]), text)
    assert found.tolist() == [[UNKNOWN_CELL] * 4] * len(parts)
    assert (shown(parts, cells_at([]), text) == NO_CELL).all(), "a text without grids has no cells"
