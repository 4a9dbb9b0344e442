"""Cells of grids by token."""

import numpy as np
import numpy.typing as npt

from corpus.prompt import CELL_COLUMNS

NO_CELL = -1


def token_cells(
    cells: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.int16]:
    """Return the first cell that each token shows.

    Args:
        cells: `[num_cells, 5] int32` as in `RenderedPrompt`, in the order of the text.
        offsets: `[num_tokens, 2] int64`, a token's characters as tokenizers give them.

    Returns:
        `[num_tokens, 4] int16`, a cell's example, role, row and column; -1 for a token without one.
    """
    shown = np.full((len(offsets), len(CELL_COLUMNS) - 1), NO_CELL, np.int16)
    if not len(cells) or not len(offsets):
        return shown
    tokens = np.searchsorted(offsets[:, 0], cells[:, 0], side="right") - 1
    inside = (tokens >= 0) & (cells[:, 0] < offsets[tokens, 1])
    tokens, cells = tokens[inside], cells[inside]
    _, first = np.unique(tokens, return_index=True)
    shown[tokens[first]] = cells[first, 1:]
    return shown
