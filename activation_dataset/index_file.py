"""Index files: shards' indexes kept beside the dataset, made again whenever they are not right."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.canonical_json import digest_of
from activation_dataset.checksum import crc32c
from activation_dataset.folder import Folder
from activation_dataset.format import index_file
from activation_dataset.index import ShardIndex, build_index
from activation_dataset.manifest import FileEntry
from activation_dataset.metadata import Metadata
from activation_dataset.prompts import CELL_FIELDS, read_prompts
from activation_dataset.record import RecordKind

LOGGER = logging.getLogger(__name__)

_MAGIC = b"activationindex1"
_LENGTH_BYTES = 8
_CRC_BYTES = 4
_ALIGNMENT = 64
# The largest elements first, so that all are aligned.
_COLUMNS = {
    "record_starts": "<i8",
    "activation_starts": "<i8",
    "token_ends": "<i8",
    "sample_id_ends": "<i8",
    "task_id_ends": "<i8",
    "token_ids": "<i4",
    "cells": "<i2",
    "sample_ids": "|u1",
    "task_ids": "|u1",
}


class IndexFileError(ValueError):
    """A file that is not the index of its shard: damaged, or made from something else."""


def keep_indexes(folder: Folder, metadata: Metadata) -> int:
    """Makes and keeps the index file of each shard that has none, or none that is right.

    Returns how many were made.

    Raises:
        CorruptRecordError, OSError: prompts cannot be read, or an index not be written.
    """
    run = metadata.run
    kind = RecordKind(run.pooling, run.storage_dtype, run.hidden_dim)
    made = 0
    for batch in metadata.shards:
        path = index_file(batch.shard, len(metadata.shards))
        key = index_key(batch.prompts, kind)
        try:
            decode_index(folder.load(path), key)
        except (OSError, IndexFileError):
            folder.save(path, encode_index(_index_of(folder, batch.prompts, kind), key))
            made += 1
    return made


def open_index(
    folder: Folder, prompts: FileEntry, shard: int, num_shards: int, kind: RecordKind
) -> ShardIndex:
    """The index of a shard: from its file, or else made from the shard's prompts.

    One that was made is kept in its file if the folder is local and can be written to.

    Args:
        folder: the dataset's.
        prompts: the file of the shard's prompts.
        shard, num_shards: which shard it is.
        kind: of the records in the layer files.

    Raises:
        CorruptRecordError, OSError: the prompts cannot be read.
    """
    path = index_file(shard, num_shards)
    key = index_key(prompts, kind)
    try:
        return decode_index(folder.load(path), key)
    except (OSError, IndexFileError) as error:
        LOGGER.info("%s is made from %s: %s", path, prompts.path, error)
    index = _index_of(folder, prompts, kind)
    if folder.local:
        try:
            folder.save(path, encode_index(index, key))
        except OSError as error:
            LOGGER.info("%s is not kept: %s", path, error)
    return index


def _index_of(folder: Folder, prompts: FileEntry, kind: RecordKind) -> ShardIndex:
    with folder.open(prompts.path) as stream:
        return build_index(read_prompts(stream, prompts.path), kind)


def index_key(prompts: FileEntry, kind: RecordKind) -> str:
    """What the index of a shard is made from; a file with another key is stale.

    Args:
        prompts: the file of the shard's prompts.
        kind: of the records in the layer files.
    """
    return digest_of(
        {
            "prompts": prompts.to_json(),
            "pooling": kind.pooling,
            "storage_dtype": kind.storage_dtype,
            "hidden": kind.hidden,
        }
    )


def encode_index(index: ShardIndex, key: str) -> bytes:
    """An index file's bytes: 16 of magic, length of the head (uint64), the head (JSON, padded with
    spaces to a multiple of 64 from the start), the columns end to end, CRC32C (uint32) of all that.

    The head holds the key, the pooling, and the length of each column; all is little-endian.
    """
    columns = {
        name: np.ascontiguousarray(getattr(index, name), dtype) for name, dtype in _COLUMNS.items()
    }
    rows = {name: len(column) for name, column in columns.items()}
    head = json.dumps({"key": key, "pooling": index.pooling, "rows": rows}).encode("ascii")
    head += b" " * (-(len(_MAGIC) + _LENGTH_BYTES + len(head)) % _ALIGNMENT)
    body = b"".join(
        [
            _MAGIC,
            len(head).to_bytes(_LENGTH_BYTES, "little"),
            head,
            *(column.tobytes() for column in columns.values()),
        ]
    )
    return body + crc32c(body).to_bytes(_CRC_BYTES, "little")


def decode_index(data: NDArray[np.uint8], key: str) -> ShardIndex:
    """Reads [n] uint8 that `encode_index` made; the columns are views of it.

    Raises:
        IndexFileError: the bytes are damaged, of another version, or have another key.
    """
    data = np.asarray(data)  # a memory map is slow to index
    body, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:].tobytes()
    opening = len(_MAGIC) + _LENGTH_BYTES
    if len(body) < opening or body[: len(_MAGIC)].tobytes() != _MAGIC:
        raise IndexFileError("no index, or one of another version")
    if crc32c(body) != int.from_bytes(crc, "little"):
        raise IndexFileError("damaged, its CRC does not match")
    # From here on the bytes are known to be as they were written.
    start = opening + int.from_bytes(body[len(_MAGIC) : opening].tobytes(), "little")
    head = json.loads(body[opening:start].tobytes())
    if head["key"] != key:
        raise IndexFileError("stale, made from other prompts or for another kind of records")
    columns: dict[str, NDArray[Any]] = {}
    for name, dtype in _COLUMNS.items():
        shape = (head["rows"][name], *([len(CELL_FIELDS)] if name == "cells" else []))
        end = start + int(np.prod(shape)) * np.dtype(dtype).itemsize
        columns[name] = body[start:end].view(dtype).reshape(shape)
        start = end
    return ShardIndex(pooling=head["pooling"], **columns)
