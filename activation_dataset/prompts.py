"""The prompts of a shard: every sample's tokens, and the grid cell that each of them shows.

A file of prompts is a TFRecord file like a layer file. Its records are tf.train.Examples with the
feature `cells` in place of `activation`, of int16, and the others as in a layer file of every
token. Record i is of the same sample as record i of each layer file of the shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from activation_dataset import native
from activation_dataset.checksum import crc32c, extend, to_text
from activation_dataset.example import (
    DecodedExample,
    ExampleError,
    decode_example,
    encode_prefix,
    encode_suffix,
)
from activation_dataset.format import Sample, prompts_file
from activation_dataset.manifest import FileEntry, PromptsManifest
from activation_dataset.tfrecord import (
    FOOTER_BYTES,
    HEADER_BYTES,
    CorruptRecordError,
    frame_footer,
    frame_header,
    read_records,
)

PAYLOAD = b"cells"
CELL_FIELDS = ("example", "role", "row", "column")
"""What the columns of `cells` hold."""

TEST_PAIR = -1
NO_CELL = -1
ROLES = ("input", "output")

CELLS_BYTES = 8
"""Bytes of one token's cell."""

_STORED = np.dtype("<i2")
# As many as fit into a core's cache.
_ROWS_CHECKED = 1 << 13
# All bits of a role but the lowest, for there are two roles, and the signs of row and column.
_NO_CELLS_BITS = np.int64(0x8000_8000_FFFE_0000 - (1 << 64))


@dataclass(frozen=True, eq=False)
class Prompt:
    """The prompt of one sample.

    Attributes:
        sample_id: unique in the dataset.
        task_id: id of the task, as its file gives it.
        token_ids: [num_tokens] int32, the whole prompt, whatever the pooling.
        cells: [num_tokens, 4] int16, what each token shows: example (0, 1, ... or -1 for the test
            pair), role (0 input, 1 output), row and column of a grid's cell; -1 in all four for a
            token that is no cell.

    Raises:
        TypeError: an array has another dtype or shape.
    """

    sample_id: str
    task_id: str
    token_ids: NDArray[np.int32]
    cells: NDArray[np.int16]

    def __post_init__(self) -> None:
        if self.cells.dtype != np.int16 or self.cells.shape != (len(self.token_ids), 4):
            raise TypeError(
                f"sample {self.sample_id!r}: cells is {self.cells.dtype} of shape "
                f"{self.cells.shape}, expected int16 of shape [{len(self.token_ids)}, 4]"
            )

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def sample(self) -> Sample:
        """The sample as the records of every token have it."""
        return Sample(self.sample_id, self.task_id, self.token_ids, self.num_tokens)


def write_prompts(
    stream: BinaryIO, prompts: Iterable[Prompt], shard: int, num_shards: int
) -> PromptsManifest:
    """Writes the prompts of a shard, in the order of its layer files.

    Args:
        stream: where the bytes go, from its position on; neither flushed nor closed.
    """
    crc = size = samples = tokens = 0
    for prompt in prompts:
        data = encode_prompt(prompt)
        record = frame_header(len(data)) + data + frame_footer(crc32c(data))
        written = stream.write(record)
        if written is not None and written != len(record):
            raise OSError(f"only {written} of {len(record)} bytes were written")
        crc = extend(crc, record)
        size += len(record)
        samples += 1
        tokens += prompt.num_tokens
    entry = FileEntry(prompts_file(shard, num_shards), size, to_text(crc))
    return PromptsManifest(shard, samples, tokens, entry)


def encode_prompt(prompt: Prompt) -> bytes:
    """A record's data; the bytes are a function of the prompt."""
    payload = prompt.cells.astype(_STORED, copy=False).tobytes()
    suffix = encode_suffix(prompt.sample, prompt.cells.shape)
    return encode_prefix(len(payload), len(suffix), PAYLOAD) + payload + suffix


def read_prompts(stream: BinaryIO, name: str) -> Iterator[Prompt]:
    """The prompts of a file, in order, every CRC checked.

    Args:
        stream: seekable binary stream, read from its position on.
        name: what errors call the file.

    Raises:
        CorruptRecordError: a record is corrupt, or no prompt.
    """
    offset = stream.tell()
    for number, data in enumerate(read_records(stream, name)):
        try:
            yield decode_prompt(data)
        except ExampleError as error:
            raise CorruptRecordError(name, number, offset, str(error)) from None
        offset += HEADER_BYTES + len(data) + FOOTER_BYTES


def decode_prompt(data: bytes | memoryview) -> Prompt:
    """Reads a record's data.

    Raises:
        ExampleError: the bytes are not a record of a prompt.
    """
    example = decode_example(data, PAYLOAD)
    sample = example.sample
    if len(sample.token_ids) != sample.num_tokens:
        raise ExampleError(
            f"token_ids has {len(sample.token_ids)} values, num_tokens says {sample.num_tokens}"
        )
    return Prompt(sample.sample_id, sample.task_id, sample.token_ids, _cells(example))


def _cells(example: DecodedExample) -> NDArray[np.int16]:
    shape = (example.sample.num_tokens, len(CELL_FIELDS))
    if example.shape != shape:
        raise ExampleError(f"shape is {example.shape}, expected {shape}")
    size = shape[0] * shape[1] * _STORED.itemsize
    if len(example.activation) != size:
        raise ExampleError(f"cells has {len(example.activation)} bytes, expected {size}")
    payload = np.frombuffer(example.activation, np.uint8)
    if not spans_are_cells(payload, np.zeros(1, np.int64), np.full(1, size)):
        raise ExampleError("cells has a row that is neither a cell nor -1 throughout")
    return payload.view(_STORED).reshape(shape).astype(np.int16)


def spans_are_cells(
    block: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> bool:
    """Whether stored cells, each block[start:end] of whole ones, are a cell or -1 throughout."""
    if native.library is not None:
        places = (native.address(block), native.address(starts), native.address(ends))
        return bool(native.library.AreCells(*places, len(starts)))
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    payload = np.concatenate([block[start:end] for start, end in spans])
    rows = payload.view("<i8")  # example in the lowest 16 bits, then role, row and column
    return all(
        _are_cells(rows[start : start + _ROWS_CHECKED])
        for start in range(0, len(rows), _ROWS_CHECKED)
    )


def _are_cells(rows: NDArray[np.int64]) -> bool:
    example = rows & 0xFFFF
    sound = (rows & _NO_CELLS_BITS) == 0
    sound &= (example < 0x8000) | (example == 0xFFFF)
    sound |= rows == -1
    return bool(sound.all())
