"""Prompts of a shard: the tokens of every sample, and the grid cell that each token shows.

A file of prompts is a TFRecord file like a layer file. Its records have the feature `cells`, int16,
instead of `activation`. `cells` is empty if no token shows a cell. `token_ids` has all tokens of
the prompt. Record i belongs to the same sample as record i of each layer file of the shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import crc32c, extend, to_text
from activation_dataset.example import (
    ExampleError,
    decode_example,
    encode_prefix,
    encode_suffix,
)
from activation_dataset.format import Sample, prompts_file
from activation_dataset.manifest import FileEntry, PromptsManifest, sample_order
from activation_dataset.tfrecord import frame_footer, frame_header, read_records

PAYLOAD = b"cells"
CELL_FIELDS = ("example", "role", "row", "column")
"""Columns of `cells`."""

TEST_PAIR = -1
NO_CELL = -1
UNKNOWN_CELL = -2
NO_TURN = -1
ROLES = ("input", "output")

_STORED = np.dtype("<i2")


@dataclass(frozen=True, eq=False)
class Prompt:
    """Prompt of one sample.

    Attributes:
        sample_id: unique id.
        task_id: id of the task in its file.
        token_ids: [num_tokens] int32, the whole prompt with every pooling.
        cells: [num_tokens, 4] int16, the grid cell that each token shows: example (0, 1, ... or -1
            for the test pair), role (0 input, 1 output), row and column. All four are -1 for a
            token that shows no cell. All values are -2 if the cells could not be mapped to tokens
            one to one.
        truncated_tokens: number of tokens that were cut off the end of a prompt that was too long.
        positions: [n] int32, positions of the chosen tokens, whose vectors are stored or averaged,
            ascending; None if all tokens are chosen.
        offset: as in `Sample`.
        prepended_bos: as in `Sample`.
        turns: [num_tokens] int16, for each token of a chat, the number of its message from 0, or -1
            for a token between messages; None for a prompt that is not a chat, or whose messages
            cannot be told apart.
        roles: role of each message of a chat.

    Raises:
        TypeError: if an array has another dtype or shape.
    """

    sample_id: str
    task_id: str
    token_ids: NDArray[np.int32]
    cells: NDArray[np.int16]
    truncated_tokens: int = 0
    positions: NDArray[np.int32] | None = None
    offset: int = 0
    prepended_bos: bool = False
    turns: NDArray[np.int16] | None = None
    roles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        arrays: dict[str, tuple[NDArray[np.int16], tuple[int, ...]]]
        arrays = {"cells": (self.cells, (self.num_tokens, 4))}
        if self.turns is not None:
            arrays["turns"] = (self.turns, (self.num_tokens,))
        for name, (array, shape) in arrays.items():
            if array.dtype != np.int16 or array.shape != shape:
                raise TypeError(
                    f"sample {self.sample_id!r}: {name} is {array.dtype} of shape {array.shape}, "
                    f"expected int16 of shape {list(shape)}"
                )

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return len(self.token_ids)

    @property
    def sample(self) -> Sample:
        """Sample of the prompt, without cells and turns."""
        return Sample(**{each.name: getattr(self, each.name) for each in fields(Sample)})

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """True for chosen tokens, [num_tokens] bool."""
        chosen = np.full(self.num_tokens, self.positions is None)
        if self.positions is not None:
            chosen[self.positions] = True
        return chosen

    @property
    def chosen_ids(self) -> NDArray[np.int32]:
        """Ids of the chosen tokens, [chosen tokens] int32."""
        return self.token_ids if self.positions is None else self.token_ids[self.positions]

    @property
    def has_chosen_tokens(self) -> bool:
        """True unless `positions` is empty."""
        return self.positions is None or len(self.positions) > 0

    @property
    def cells_known(self) -> bool:
        """True unless the cells could not be mapped to tokens one to one."""
        return not (self.cells == UNKNOWN_CELL).any()


def write_prompts(
    stream: BinaryIO, prompts: Iterable[Prompt], shard: int, num_shards: int
) -> PromptsManifest:
    """Write the prompts of a shard at the stream's position.

    Args:
        stream: binary stream. The caller flushes and closes it.
        prompts: prompts in the order of the layer files.
        shard: number of the shard.
        num_shards: number of shards.

    Raises:
        OSError: if the stream did not accept all bytes.
    """
    crc = size = tokens = 0
    sample_ids = []
    for prompt in prompts:
        data = encode_prompt(prompt)
        record = frame_header(len(data)) + data + frame_footer(crc32c(data))
        written = stream.write(record)
        if written is not None and written != len(record):
            raise OSError(f"only {written} of {len(record)} bytes were written")
        crc = extend(crc, record)
        size += len(record)
        tokens += prompt.num_tokens
        sample_ids.append(prompt.sample_id)
    entry = FileEntry(prompts_file(shard, num_shards), size, to_text(crc))
    return PromptsManifest(shard, len(sample_ids), tokens, sample_order(sample_ids), entry)


def encode_prompt(prompt: Prompt) -> bytes:
    """Encode the data of a prompt's record."""
    cells = prompt.cells if (prompt.cells != NO_CELL).any() else prompt.cells[:0]
    payload = cells.astype(_STORED, copy=False).tobytes()
    suffix = encode_suffix(prompt.sample, cells.shape, prompt.turns, prompt.roles)
    return encode_prefix(len(payload), len(suffix), PAYLOAD) + payload + suffix


def read_prompts(stream: BinaryIO, name: str) -> Iterator[Prompt]:
    """Yield the prompts of a file in order, and check every CRC.

    Args:
        stream: seekable binary stream.
        name: name of the file in error messages.

    Raises:
        CorruptRecordError: if a record is damaged or not a prompt.
    """
    return read_records(stream, name, decode_prompt)


def decode_prompt(data: bytes | memoryview) -> Prompt:
    """Decode the result of `encode_prompt`.

    Raises:
        ExampleError: if the data is not such a result.
    """
    example = decode_example(data, PAYLOAD)
    sample = example.sample
    if len(sample.token_ids) != sample.num_tokens:
        raise ExampleError(
            f"token_ids has {len(sample.token_ids)} values, num_tokens says {sample.num_tokens}"
        )
    shape = (sample.num_tokens if len(example.activation) else 0, len(CELL_FIELDS))
    if example.shape != shape:
        raise ExampleError(f"shape is {example.shape}, expected {shape}")
    size = shape[0] * shape[1] * _STORED.itemsize
    if len(example.activation) != size:
        raise ExampleError(f"cells has {len(example.activation)} bytes, expected {size}")
    cells = np.full((sample.num_tokens, len(CELL_FIELDS)), NO_CELL, np.int16)
    if shape[0]:
        cells[...] = np.frombuffer(example.activation, _STORED).reshape(shape)
        _check_cells(cells)
    _check_turns(example.turns, example.roles, sample.num_tokens)
    stored = {name: value for name, value in vars(sample).items() if name != "num_tokens"}
    return Prompt(**stored, cells=cells, turns=example.turns, roles=example.roles)


def _check_cells(cells: NDArray[np.int16]) -> None:
    example, role, row, column = cells.T
    is_cell = (example >= TEST_PAIR) & (role >= 0) & (role < len(ROLES)) & (row >= 0)
    is_cell &= column >= 0
    is_cell |= (cells == NO_CELL).all(axis=1)
    if not is_cell.all() and not (cells == UNKNOWN_CELL).all():
        raise ExampleError(
            "cells has a row that is neither a cell nor -1 in all four columns, and not every "
            "value is -2"
        )


def _check_turns(turns: NDArray[np.int16] | None, roles: tuple[str, ...], num_tokens: int) -> None:
    if turns is None:
        if roles:
            raise ExampleError(f"roles has {len(roles)} values, but the record has no turns")
    elif len(turns) != num_tokens or not len(roles):
        raise ExampleError(
            f"turns has {len(turns)} values and roles has {len(roles)}, expected {num_tokens} and "
            "at least 1"
        )
    elif len(turns) and turns.max() >= len(roles):
        raise ExampleError(f"turns has message {turns.max() + 1}, but roles has {len(roles)}")
