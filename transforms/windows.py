"""Windows of long documents, and a token that is prepended to prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from activation_dataset.prompts import NO_CELL, NO_TURN, Prompt


def windows(num_tokens: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each window of a document.

    Each window but the first begins with the last `overlap` tokens of the previous one. All have
    `size` tokens but the last one, which has at least one new token.
    """
    start = 0
    while start + size < num_tokens:
        yield start, start + size
        start += size - overlap
    yield start, num_tokens


def truncated(prompt: Prompt, max_length: int) -> Prompt:
    """Cut off the end of a prompt that exceeds a number of tokens."""
    excess = prompt.num_tokens - max_length
    return prompt if excess <= 0 else replace(_part(prompt, 0, max_length), truncated_tokens=excess)


def windows_of(document: Prompt, size: int, overlap: int) -> Iterator[Prompt]:
    """Yield the windows of a document; tokens repeated from an earlier window are not chosen."""
    for start, stop in windows(document.num_tokens, size, overlap):
        repeated = overlap if start else 0
        yield replace(
            _part(document, start, stop),
            sample_id=f"{document.sample_id}@{start}",
            positions=np.arange(repeated, stop - start, dtype=np.int32) if repeated else None,
            offset=start,
        )


def _part(prompt: Prompt, start: int, stop: int) -> Prompt:
    """Return consecutive tokens of a prompt in which all are chosen, with their cells and turns."""
    return replace(
        prompt,
        token_ids=prompt.token_ids[start:stop],
        cells=prompt.cells[start:stop],
        turns=None if prompt.turns is None else prompt.turns[start:stop],
    )


def with_bos(prompt: Prompt, token_id: int) -> Prompt:
    """Prepend a token to a prompt, and choose it."""
    positions, turns = prompt.positions, prompt.turns
    return replace(
        prompt,
        token_ids=np.concatenate([np.array([token_id], np.int32), prompt.token_ids]),
        cells=np.pad(prompt.cells, ((1, 0), (0, 0)), constant_values=NO_CELL),
        turns=None if turns is None else np.pad(turns, (1, 0), constant_values=NO_TURN),
        positions=None if positions is None else np.pad(positions + 1, (1, 0)),
        prepended_bos=True,
    )
