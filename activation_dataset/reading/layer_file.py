"""Reading the vectors of a layer file in bulk, with every CRC checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import extend
from activation_dataset.folder import Folder
from activation_dataset.index import ShardIndex
from activation_dataset.record import RecordKind
from activation_dataset.tfrecord import (
    DATA_CRC,
    FOOTER_BYTES,
    HEADER_BYTES,
    CorruptRecordError,
    check_header,
    frame_footer,
    record_data,
)

Bytes = NDArray[np.uint8]

# A piece fits into a core's cache, so that its CRC is computed without a second read of memory.
_PIECE_BYTES = 1 << 19


@dataclass(frozen=True, eq=False)
class LayerFile:
    """One layer file.

    Attributes:
        folder, path: the file.
        index: index of its shard.
        kind: format of its records.
    """

    folder: Folder
    path: str
    index: ShardIndex
    kind: RecordKind

    def read(self, first: int, last: int, out: NDArray[Any]) -> None:
        """Read the vectors of the records first..last - 1.

        Args:
            first, last: range of records, by their number in the file.
            out: [vectors, hidden] of the storage dtype, C-contiguous; undefined after an error.

        Raises:
            CorruptRecordError: a CRC does not match, or the file ends too early.
        """
        payload = out.reshape(-1).view(np.uint8)
        start, end = self.index.record_starts[[first, last]].tolist()
        with self.folder.open_range(self.path, start, end) as stream:
            if last - first == 1:
                self._read_record(stream, first, payload)
            else:
                self._read_records(stream, first, last, payload)

    def record(self, record: int) -> memoryview:
        """Return the data of one record. Raises as `read`."""
        start, end = self.index.record_starts[record : record + 2].tolist()
        block = np.empty(end - start, np.uint8)
        with self.folder.open_range(self.path, start, end) as stream:
            self._fill(stream, record, block)
        return record_data(block, self.path, record, start)

    def _read_record(self, stream: BinaryIO, record: int, payload: Bytes) -> None:
        """Read a record directly into its place, piece by piece."""
        start, end = self.index.record_starts[record : record + 2].tolist()
        head = np.empty(int(self.index.activation_starts[record]) - start, np.uint8)
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
        """Read many small records with one read, and copy their activations."""
        index = self.index
        offset = int(index.record_starts[first])
        starts = (index.record_starts[first : last + 1] - offset).tolist()
        activations = (index.activation_starts[first:last] - offset).tolist()
        sizes = (index.vector_counts[first:last] * self.kind.vector_bytes).tolist()
        block = np.empty(starts[-1], np.uint8)
        self._fill(stream, first, block)
        position = 0
        for number, (activation, size) in enumerate(zip(activations, sizes, strict=True)):
            record = block[starts[number] : starts[number + 1]]
            record_data(record, self.path, first + number, offset + starts[number])
            payload[position : position + size] = block[activation : activation + size]
            position += size

    def _fill(self, stream: Any, record: int, view: Bytes) -> None:
        filled = 0
        while filled < len(view):
            count = stream.readinto(view[filled:])
            if not count:
                start = int(self.index.record_starts[record])
                raise CorruptRecordError(
                    self.path, record, start, "the file ends in this record or soon after it"
                )
            filled += count
