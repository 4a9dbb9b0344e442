"""Index of a shard: the offsets of its records, and its prompts as columns.

The prompts of the shard determine the whole index, so one index serves every site. Sites of the
same width have the same offsets.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from activation_dataset.canonical_json import digest_of
from activation_dataset.checksum import crc32c, to_text
from activation_dataset.damage import DatasetError, advice, with_advice
from activation_dataset.folder import Folder
from activation_dataset.format import Pooling, index_file
from activation_dataset.layout import Layout
from activation_dataset.manifest import FileEntry
from activation_dataset.metadata import Metadata, RunDescription
from activation_dataset.prompts import CELL_FIELDS, NO_TURN, Prompt, read_prompts
from activation_dataset.record import RecordKind, frame_record

LOGGER = logging.getLogger(__name__)

_CRC_BYTES = 4
_TEXTS = ("sample_ids", "task_ids", "roles")
_COLUMNS = (
    *("record_starts", "activation_starts", "token_ends", "token_ids", "cells"),
    *("chosen", "offsets", "prepended_bos", "turns"),
)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Records and prompts of a shard, in the order of its files.

    Attributes:
        pooling: pooling of the dataset.
        widths: widths of vectors, first the width of the residual stream, then other widths.
        record_starts: [widths, samples + 1] int64, offset of each record in a layer file; the last
            value is the size of the file.
        activation_starts: [widths, samples] int64, offset of each record's activation.
        token_ends: [samples] int64, cumulative number of prompt tokens.
        token_ids: [tokens] int32, token ids of all prompts.
        cells: [tokens, 4] int16, as in `Prompt`.
        chosen: [tokens] bool, True for tokens whose vectors are stored, or averaged with pooling
            "mean".
        offsets: [samples] int64, as in `Sample`.
        prepended_bos: [samples] bool, as in `Sample`.
        turns: [tokens] int16, as in `Prompt`, -1 for a prompt without turns; empty if no prompt
            has turns.
        sample_ids: [samples] id of each sample.
        task_ids: [samples] id of the task of each sample.
        roles: [samples] roles of the messages of each chat.
    """

    pooling: Pooling
    widths: list[int]
    record_starts: NDArray[np.int64]
    activation_starts: NDArray[np.int64]
    token_ends: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    cells: NDArray[np.int16]
    chosen: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    prepended_bos: NDArray[np.bool_]
    turns: NDArray[np.int16]
    sample_ids: list[str]
    task_ids: list[str]
    roles: list[list[str]]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.token_ends)

    @cached_property
    def token_counts(self) -> NDArray[np.int64]:
        """Number of tokens of each prompt, [samples] int64."""
        return np.diff(self.token_ends, prepend=0)

    @cached_property
    def vector_ends(self) -> NDArray[np.int64]:
        """Cumulative number of vectors, [samples] int64."""
        if self.pooling != "none":
            return np.arange(1, len(self) + 1, dtype=np.int64)
        ends: NDArray[np.int64] = np.concatenate([[0], np.cumsum(self.chosen)])[self.token_ends]
        return ends

    @cached_property
    def vector_tokens(self) -> NDArray[np.int64]:
        """Place of each vector's token in `token_ids`, [vectors] int64; empty for means."""
        if self.pooling == "mean":
            return np.empty(0, np.int64)
        return self.token_ends - 1 if self.pooling == "last" else np.flatnonzero(self.chosen)

    @cached_property
    def vector_positions(self) -> NDArray[np.int64]:
        """Position of each vector's token in its prompt, [vectors] int64; empty for means."""
        if self.pooling == "mean":
            return self.vector_tokens
        starts = np.repeat(self.token_ends - self.token_counts, self.vector_counts)
        positions: NDArray[np.int64] = self.vector_tokens - starts
        return positions

    @cached_property
    def vector_counts(self) -> NDArray[np.int64]:
        """Number of vectors of each sample, [samples] int64."""
        return np.diff(self.vector_ends, prepend=0)

    @cached_property
    def layout(self) -> Layout:
        """Layout of the shard, which shares only the memory of `record_starts` with the index."""
        heads = self.activation_starts - self.record_starts[:, :-1]
        ends = np.append(0, self.vector_ends)
        return Layout(tuple(self.widths), self.record_starts, heads.astype(np.int32), ends)

    @cached_property
    def nbytes(self) -> int:
        """Approximate size in memory in bytes, including all cached properties."""
        columns = sum(int(getattr(self, name).nbytes) for name in _COLUMNS)
        chosen = 0 if self.pooling == "mean" else int(self.vector_ends[-1]) if len(self) else 0
        computed = 8 * (3 * len(self) + 2 * chosen) + self.layout.nbytes
        roles = (role for each in self.roles for role in each)
        texts = sum(sys.getsizeof(text) + 8 for text in (*self.sample_ids, *self.task_ids, *roles))
        return columns + computed + texts + 64 * len(self.roles)


def open_index(folder: Folder, metadata: Metadata, shard: int) -> ShardIndex:
    """Load the index of a shard from its file, or build it from the prompts and try to save it.

    Remote folders stay unchanged.

    Raises:
        CorruptRecordError: if a record of the prompts is damaged.
        DatasetError: if the file of the prompts is missing, or not the one in metadata.json.
        OSError: if the file of the prompts cannot be read.
    """
    index, data = _load_or_build(folder, metadata, shard)
    if data and folder.local:
        try:
            folder.save(index_file(shard, len(metadata.shards)), data)
        except OSError as error:
            LOGGER.info("the index of shard %d is not saved: %s", shard, error)
    return index


def keep_indexes(folder: Folder, metadata: Metadata) -> int:
    """Save each index that is missing, stale or damaged, and return the number of saved indexes.

    Raises:
        CorruptRecordError: if a record of the prompts is damaged.
        DatasetError: if a file of prompts is missing, or not the one in metadata.json.
        OSError: if a file of prompts cannot be read, or an index cannot be written.
    """
    built = 0
    for shard in range(len(metadata.shards)):
        _, data = _load_or_build(folder, metadata, shard)
        if data:
            folder.save(index_file(shard, len(metadata.shards)), data)
            built += 1
    return built


def _load_or_build(folder: Folder, metadata: Metadata, shard: int) -> tuple[ShardIndex, bytes]:
    """Return the index of a shard, and the content of its file, or b"" if the file is valid."""
    path = index_file(shard, len(metadata.shards))
    entry, kinds = metadata.shards[shard].prompts, _kinds_of(metadata.run)
    # The key identifies the sources of the index. A file with another key is stale.
    key = digest_of({"prompts": asdict(entry), "kinds": [asdict(kind) for kind in kinds]})
    try:
        return decode_index(folder.read(path), key), b""
    except (OSError, ValueError) as error:
        LOGGER.info("building %s from %s: %s", path, entry.path, error)
    index = _index_of(_listed_prompts(folder, entry), kinds)
    return index, encode_index(index, key)


def _listed_prompts(folder: Folder, entry: FileEntry) -> list[Prompt]:
    """Read a file of prompts, which must be the listed one: a wrong index would outlive it."""
    with with_advice(folder, entry.path):
        data = folder.read(entry.path)
        prompts = list(read_prompts(io.BytesIO(data), entry.path))
    if what := entry.difference(len(data), to_text(crc32c(data))):
        raise DatasetError(f"{entry.path} {what}. {advice(folder)}")
    return prompts


def _kinds_of(run: RunDescription) -> list[RecordKind]:
    """Return the kinds of a dataset's records, first the residual stream's, captured or not."""
    stream = RecordKind(run.pooling, run.storage_dtype, run.hidden_dim)
    return list(dict.fromkeys([stream, *map(run.record_kind, run.sites)]))


def _index_of(prompts: list[Prompt], kinds: list[RecordKind]) -> ShardIndex:
    frames = [[frame_record(kind.sample(prompt), kind) for prompt in prompts] for kind in kinds]
    sizes = [[0, *(frame.size for frame in each)] for each in frames]
    record_starts = np.cumsum(sizes, axis=1, dtype=np.int64)
    heads = np.array([[len(frame.head) for frame in each] for each in frames], np.int64)
    token_counts = [prompt.num_tokens for prompt in prompts]
    no_tokens, no_cells = np.empty(0, np.int32), np.empty((0, len(CELL_FIELDS)), np.int16)
    return ShardIndex(
        pooling=kinds[0].pooling,
        widths=[kind.hidden for kind in kinds],
        record_starts=record_starts,
        activation_starts=record_starts[:, :-1] + heads,
        token_ends=np.cumsum(token_counts, dtype=np.int64),
        token_ids=np.concatenate([no_tokens, *(prompt.token_ids for prompt in prompts)]),
        cells=np.concatenate([no_cells, *(prompt.cells for prompt in prompts)]),
        chosen=np.concatenate([np.empty(0, bool), *(prompt.chosen for prompt in prompts)]),
        offsets=np.array([prompt.offset for prompt in prompts], np.int64),
        prepended_bos=np.array([prompt.prepended_bos for prompt in prompts], bool),
        turns=_turns(prompts),
        sample_ids=[prompt.sample_id for prompt in prompts],
        task_ids=[prompt.task_id for prompt in prompts],
        roles=[list(prompt.roles) for prompt in prompts],
    )


def _turns(prompts: list[Prompt]) -> NDArray[np.int16]:
    if not any(prompt.roles for prompt in prompts):
        return np.empty(0, np.int16)
    return np.concatenate(
        [
            np.full(prompt.num_tokens, NO_TURN, np.int16) if prompt.turns is None else prompt.turns
            for prompt in prompts
        ]
    )


def encode_index(index: ShardIndex, key: str) -> bytes:
    """Encode an index file: arrays in numpy's .npy format, then their CRC32C (uint32).

    The first array, uint8, contains JSON: the key, the pooling, the widths, the ids and the roles.
    All values are little-endian.
    """
    texts = {name: getattr(index, name) for name in ("pooling", "widths", *_TEXTS)}
    texts["key"] = key
    stream = io.BytesIO()
    np.save(stream, np.frombuffer(json.dumps(texts).encode(), np.uint8))
    for name in _COLUMNS:
        column = getattr(index, name)
        np.save(stream, column.astype(column.dtype.newbyteorder("<")))
    body = stream.getvalue()
    return body + crc32c(body).to_bytes(_CRC_BYTES, "little")


def decode_index(data: bytes, key: str) -> ShardIndex:
    """Decode an index file.

    Raises:
        ValueError: if the file is damaged or has another key.
    """
    body, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if not body or crc32c(body) != int.from_bytes(crc, "little"):
        raise ValueError("damaged, its CRC does not match")
    # After this check, the bytes equal the written bytes.
    stream = io.BytesIO(body)
    texts = json.loads(np.load(stream).tobytes())
    if texts.pop("key") != key:
        raise ValueError("stale, built from other prompts or for another kind of records")
    return ShardIndex(**texts, **{name: np.load(stream) for name in _COLUMNS})
