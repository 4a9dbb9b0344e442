"""Map tokens to cells of grids."""

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from corpus.prompt import CELL_COLUMNS

NO_CELL = -1
UNKNOWN_CELL = -2

_OTHER_THAN_DIGITS = re.compile("[^0-9]+")


def token_cells(
    text: str,
    cells: npt.NDArray[np.int32] | None,
    token_ids: npt.NDArray[np.int32],
    text_of: Callable[[int], str],
) -> npt.NDArray[np.int16]:
    """Return the cell of each token.

    A cell is a digit, and the n-th digit of the text is the n-th digit of the tokens. The offsets
    that tokenizers return are not used, because some normalizers make them wrong.

    Args:
        text: the whole prompt.
        cells: `[num_cells, 5] int32` as in `RenderedPrompt`, in the order of the text; None if
            their offsets are unknown.
        token_ids: `[num_tokens] int32`, token ids of the text.
        text_of: function that returns the text of a token.

    Returns:
        `[num_tokens, 4] int16`: example, role, row and column of a token's cell; -1 for a token
        without a cell. All values are -2 if cells and tokens do not match one to one: the digits of
        the tokens differ from the digits of the text, or a cell's token has several digits.
    """
    columns = len(CELL_COLUMNS) - 1
    shown = np.full((len(token_ids), columns), NO_CELL, np.int16)
    if cells is None:
        return np.full_like(shown, UNKNOWN_CELL)
    if not len(cells):
        return shown
    distinct, places = np.unique(token_ids, return_inverse=True)
    digits = [_OTHER_THAN_DIGITS.sub("", text_of(token_id)) for token_id in distinct.tolist()]
    if "".join(digits[place] for place in places) == _OTHER_THAN_DIGITS.sub("", text):
        counts = np.array([len(each) for each in digits])[places]
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        numbers = np.cumsum((codes >= ord("0")) & (codes <= ord("9"))) - 1
        tokens = np.repeat(np.arange(len(token_ids)), counts)[numbers[cells[:, 0]]]
        if (counts[tokens] == 1).all():
            shown[tokens] = cells[:, 1:]
            return shown
    return np.full_like(shown, UNKNOWN_CELL)
