"""Bulk reads of the vectors of a layer file. Every CRC is checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from activation_dataset.checksum import extend
from activation_dataset.damage import with_advice
from activation_dataset.folder import Folder
from activation_dataset.layout import Layout
from activation_dataset.record import RecordKind
from activation_dataset.tfrecord import (
    DATA_CRC,
    FOOTER_BYTES,
    HEADER_BYTES,
    CorruptRecordError,
    check_header,
    frame_footer,
    frame_header,
    mask,
    record_data,
)

Bytes = NDArray[np.uint8]

# Pieces and blocks fit into a core's cache: computing their CRC and copying their vectors reads
# memory only once.
_PIECE_BYTES = 1 << 19
_BLOCK_BYTES = 1 << 18


@dataclass(frozen=True, eq=False)
class LayerFile:
    """Layer file, with the layout of its shard and the format of its records."""

    folder: Folder
    path: str
    layout: Layout
    kind: RecordKind

    @cached_property
    def record_starts(self) -> NDArray[np.int64]:
        """Offset of each record, then the size of the file, [samples + 1] int64."""
        starts: NDArray[np.int64] = self.layout.record_starts[self._width]
        return starts

    @cached_property
    def _heads(self) -> NDArray[np.int32]:
        heads: NDArray[np.int32] = self.layout.heads[self._width]
        return heads

    @property
    def _width(self) -> int:
        return self.layout.widths.index(self.kind.hidden)

    def read(self, first: int, last: int, out: NDArray[Any]) -> None:
        """Read the vectors of the records first..last - 1 into `out`.

        Each step checks and copies one large record, or several small ones, while they are in the
        cache.

        Args:
            first: first record to read.
            last: record after the last one to read.
            out: [vectors, row elements] as in `storage_dtype`, C-contiguous; undefined after an
                error.

        Raises:
            CorruptRecordError: if a record is damaged or incomplete.
            DatasetError: if the file is missing.
        """
        payload = out.reshape(-1).view(np.uint8)
        start, end = self.record_starts[[first, last]].tolist()
        vectors = self.layout.vector_starts
        with (
            with_advice(self.folder, self.path),
            self.folder.open_range(self.path, start, end) as stream,
        ):
            while first < last:
                limit = self.record_starts[first] + _BLOCK_BYTES
                fitting = int(np.searchsorted(self.record_starts, limit, side="right")) - 1
                until = min(last, max(fitting, first + 1))
                size = int(vectors[until] - vectors[first]) * self.kind.vector_bytes
                if until - first == 1:
                    self._read_record(stream, first, payload[:size])
                else:
                    self._read_records(stream, first, until, payload[:size])
                first, payload = until, payload[size:]

    def record(self, record: int) -> memoryview:
        """Return the data of one record.

        Raises:
            CorruptRecordError: if the record is damaged or incomplete.
            DatasetError: if the file is missing.
        """
        start, end = self.record_starts[record : record + 2].tolist()
        block = np.empty(end - start, np.uint8)
        with with_advice(self.folder, self.path):
            with self.folder.open_range(self.path, start, end) as stream:
                self._fill(stream, record, block)
            return record_data(block, self.path, record, start)

    def _read_record(self, stream: BinaryIO, record: int, payload: Bytes) -> None:
        """Read a record directly into `payload`, piece by piece."""
        start, end = self.record_starts[record : record + 2].tolist()
        head = np.empty(int(self._heads[record]), np.uint8)
        tail = np.empty(end - start - len(head) - len(payload), np.uint8)
        self._fill(stream, record, head)
        check_header(head[:HEADER_BYTES], end - start, self.path, record, start)
        crc = extend(0, head[HEADER_BYTES:])
        for position in range(0, len(payload), _PIECE_BYTES):
            piece = payload[position : position + _PIECE_BYTES]
            self._fill(stream, record, piece)
            crc = extend(crc, piece)
        self._fill(stream, record, tail)
        crc = extend(crc, tail[:-FOOTER_BYTES])
        if frame_footer(crc) != tail[-FOOTER_BYTES:].tobytes():
            raise CorruptRecordError(self.path, record, start, DATA_CRC)

    def _read_records(self, stream: BinaryIO, first: int, last: int, payload: Bytes) -> None:
        """Read several small records at once, check them, and copy their activations."""
        offset = int(self.record_starts[first])
        starts = self.record_starts[first : last + 1] - offset
        activations = starts[:-1] + self._heads[first:last]
        block = np.empty(int(starts[-1]), np.uint8)
        self._fill(stream, first, block)
        self._check(block, starts, first)
        if self.kind.pooling == "none":
            counts = np.diff(self.layout.vector_starts[first : last + 1])
            sizes = counts * self.kind.vector_bytes
            spans = zip(activations.tolist(), (activations + sizes).tolist(), strict=True)
            np.concatenate([block[start:end] for start, end in spans], out=payload)
        else:
            vectors = payload.reshape(-1, self.kind.vector_bytes)
            vectors[...] = sliding_window_view(block, vectors.shape[1])[activations]

    def _check(self, block: Bytes, starts: NDArray[np.int64], first: int) -> None:
        """Check the CRCs of all records in a block together. `starts` is [n + 1]."""
        bounds = starts.tolist()
        data = [block[start + HEADER_BYTES : end - FOOTER_BYTES] for start, end in pairwise(bounds)]
        headers = b"".join([frame_header(len(each)) for each in data])
        footers = mask(np.array([extend(0, each) for each in data], np.int64)).astype("<u4")
        found_headers = sliding_window_view(block, HEADER_BYTES)[starts[:-1]]
        found_footers = sliding_window_view(block, FOOTER_BYTES)[starts[1:] - FOOTER_BYTES]
        if found_headers.tobytes() == headers and found_footers.tobytes() == footers.tobytes():
            return
        for number, (start, end) in enumerate(pairwise(bounds), first):
            offset = int(self.record_starts[number])
            record_data(block[start:end], self.path, number, offset)

    def _fill(self, stream: Any, record: int, view: Bytes) -> None:
        filled = 0
        while filled < len(view):
            count = stream.readinto(view[filled:])
            if not count:
                start = int(self.record_starts[record])
                raise CorruptRecordError(
                    self.path, record, start, "the file ends in this record or shortly after it"
                )
            filled += count
