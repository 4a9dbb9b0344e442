"""How tasks and prompts are shuffled: as a few compressed bytes each.

A runner keeps what waits between two stages, Beam's local one all of it in memory. As objects a
task of ARC takes tens of kilobytes and a prompt twelve bytes a token; packed, either is some
hundreds of bytes.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from apache_beam.coders import FastPrimitivesCoder

from activation_dataset.prompts import CELL_FIELDS, Prompt
from corpus.task import Document, Task

_LEVEL = 1
_LENGTHS = struct.Struct("<III")
_ITEMS = FastPrimitivesCoder()


def pack_item(item: Task | Document) -> bytes:
    return zlib.compress(_ITEMS.encode(item), _LEVEL)


def unpack_item(packed: bytes) -> Task | Document:
    item: Task | Document = _ITEMS.decode(zlib.decompress(packed))
    return item


def pack_prompt(prompt: Prompt) -> bytes:
    """Lengths, names, token ids and cells; the latter two by column, which compresses better."""
    sample_id, task_id = prompt.sample_id.encode(), prompt.task_id.encode()
    ids = np.ascontiguousarray(prompt.token_ids, "<i4").view(np.uint8).reshape(-1, 4)
    cells = prompt.cells.astype("<i2", copy=False)
    return zlib.compress(
        b"".join(
            (
                _LENGTHS.pack(len(sample_id), len(task_id), prompt.num_tokens),
                *(sample_id, task_id, ids.T.tobytes(), cells.T.tobytes()),
            )
        ),
        _LEVEL,
    )


def unpack_prompt(packed: bytes) -> Prompt:
    data = zlib.decompress(packed)
    sample_id_bytes, task_id_bytes, tokens = _LENGTHS.unpack_from(data)
    task_id = _LENGTHS.size + sample_id_bytes
    ids = task_id + task_id_bytes
    cells = ids + 4 * tokens
    by_byte = np.frombuffer(data, np.uint8, 4 * tokens, ids).reshape(4, tokens)
    by_field = np.frombuffer(data, "<i2", len(CELL_FIELDS) * tokens, cells)
    return Prompt(
        data[_LENGTHS.size : task_id].decode(),
        data[task_id:ids].decode(),
        np.ascontiguousarray(by_byte.T).view("<i4")[:, 0].astype(np.int32),
        np.ascontiguousarray(by_field.reshape(len(CELL_FIELDS), tokens).T, np.int16),
    )
