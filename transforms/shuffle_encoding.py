"""Compact encoding of tasks and prompts for shuffles.

Beam's local runner keeps all elements between two stages in memory. As Python objects, an ARC task
takes tens of kilobytes and a prompt 12 bytes per token. Encoded, they take some hundreds of bytes
and less than one byte per token.
"""

from __future__ import annotations

import zlib

import numpy as np
from apache_beam.coders import FastPrimitivesCoder

from activation_dataset.prompts import CELL_FIELDS, Prompt
from corpus.task import Document, Task

_ARRAYS = {"token_ids": np.int32, "positions": np.int32, "cells": np.int16, "turns": np.int16}
_LEVEL = 1
_CODER = FastPrimitivesCoder()


def encode_item(item: Task | Document) -> bytes:
    """Encode a task or document."""
    return zlib.compress(_CODER.encode(item), _LEVEL)


def decode_item(data: bytes) -> Task | Document:
    """Decode what `encode_item` returned."""
    item: Task | Document = _CODER.decode(zlib.decompress(data))
    return item


def encode_prompt(prompt: Prompt) -> bytes:
    """Encode a prompt, with cells by column, which compresses better."""
    fields = vars(prompt) | {"cells": np.ascontiguousarray(prompt.cells.T)}
    for name, dtype in _ARRAYS.items():
        if (array := fields[name]) is not None:
            fields[name] = array.astype(dtype, copy=False).tobytes()
    return zlib.compress(_CODER.encode(fields), _LEVEL)


def decode_prompt(data: bytes) -> Prompt:
    """Decode what `encode_prompt` returned."""
    fields = _CODER.decode(zlib.decompress(data))
    for name, dtype in _ARRAYS.items():
        if (content := fields[name]) is not None:
            fields[name] = np.frombuffer(content, dtype)
    columns = fields["cells"].reshape(len(CELL_FIELDS), -1)
    return Prompt(**fields | {"cells": np.ascontiguousarray(columns.T)})
