"""Reading the vectors of a layer file in bulk, by the shard's index, every CRC checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset import native
from activation_dataset.checksum import c_extend, crc32c_of_spans, extend
from activation_dataset.elements import scatter
from activation_dataset.folder import Source
from activation_dataset.format import numpy_dtype
from activation_dataset.index import ShardIndex
from activation_dataset.record import RecordKind
from activation_dataset.reuse import Scratch, windows
from activation_dataset.tfrecord import (
    DATA_CRC,
    FOOTER_BYTES,
    HEADER_BYTES,
    CorruptRecordError,
    check_header,
    frame_footer,
    mask,
)

Bytes = NDArray[np.uint8]

TOO_SHORT = "the file ends inside it, or inside one soon after it"

RUN_BYTES = 1 << 18
"""Records are read in runs of about this size, a larger record by itself."""


@dataclass(frozen=True)
class Run:
    """Records of a shard that are read together: first to last - 1."""

    first: int
    last: int


def runs_of(index: ShardIndex) -> list[Run]:
    """All records of a shard, in order, in runs of at most `RUN_BYTES` or of one record."""
    starts = index.record_starts
    runs = []
    first = 0
    while first < len(index):
        fitting = int(np.searchsorted(starts, starts[first] + RUN_BYTES, side="right")) - 1
        runs.append(Run(first, max(fitting, first + 1)))
        first = runs[-1].last
    return runs


@dataclass(frozen=True)
class _Place:
    """Where a record lies in its file, in bytes.

    Attributes:
        start, end: of the record with its framing.
        activation, size: where its activation starts, and how long it is.
    """

    start: int
    activation: int
    size: int
    end: int

    def head(self) -> Bytes:
        """For what comes before the activation."""
        return np.empty(self.activation - self.start, np.uint8)

    def tail(self) -> Bytes:
        """For what comes after the activation."""
        return np.empty(self.end - self.activation - self.size, np.uint8)


class LayerFileReader:
    """Reads runs of one layer file, in any number of threads; closes it as a context manager.

    Attributes:
        stored: dtype of the elements, "<f4" or "<u2".

    Args:
        source: the file's bytes.
        name: what errors call the file.
        index: of its shard.
        kind: of its records.
        scratch: may be shared with other readers.
    """

    def __init__(
        self, source: Source, name: str, index: ShardIndex, kind: RecordKind, scratch: Scratch
    ) -> None:
        self._source, self._name, self._index, self._kind = source, name, index, kind
        self._scratch = scratch
        self._piece_rows = max(1, source.piece_bytes // kind.vector_bytes)
        self._descriptor = source.descriptor if native.library and c_extend else None
        self.stored = numpy_dtype(kind.storage_dtype)

    def __enter__(self) -> LayerFileReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._source.close()

    def pieces(self, run: Run) -> Iterator[NDArray[Any]]:
        """The stored vectors of a run in order, in pieces [n, hidden], each overwritten by the
        next.

        They are known to be sound only once the last has been taken.

        Raises:
            CorruptRecordError: a CRC does not match, or the file ends too early.
        """
        pieces = self._large(run.first) if run.last - run.first == 1 else self._small(run)
        for piece in pieces:
            yield piece.reshape(-1).view(self.stored).reshape(-1, self._kind.hidden)

    def read(self, run: Run, out: NDArray[Any], places: NDArray[np.int64] | None = None) -> None:
        """Reads the stored vectors of a run into [n, hidden], which is C-contiguous.

        Args:
            run: the records.
            out: of the dtype `stored`.
            places: [vectors] int64, the rows of `out` that they go to; None for the first ones.

        Raises:
            CorruptRecordError: as `pieces`; what `out` holds then is of no use.
        """
        if run.last - run.first == 1 and self._descriptor is not None:
            self._large_by_library(run.first, self._descriptor, out, places)
            return
        start = 0
        for piece in self.pieces(run):
            end = start + len(piece)
            if places is None:
                out[start:end] = piece
            else:
                scatter(piece, out, places[start:end])
            start = end

    def _large(self, record: int) -> Iterator[Bytes]:
        """The activation of a record piece by piece."""
        place = self._place(record)
        step = self._piece_rows * self._kind.vector_bytes
        head, tail = place.head(), place.tail()
        crc = 0
        for position in range(0, max(place.size, 1), step):
            length = min(step, place.size - position)
            piece = self._scratch.take(length)
            views = [piece, tail] if position + length == place.size else [piece]
            if position == 0:
                self._fill(record, place.start, [head, *views])
                crc = self._checked_head(record, place, head)
            else:
                self._fill(record, place.activation + position, views)
            crc = extend(crc, piece)
            yield piece
        self._check_tail(record, crc, tail)

    def _large_by_library(
        self, record: int, descriptor: int, out: NDArray[Any], places: NDArray[np.int64] | None
    ) -> None:
        """Reads the activation of a record as `read`, without the interpreter's lock."""
        assert native.library is not None
        place = self._place(record)
        head, tail = place.head(), place.tail()
        self._fill(record, place.start, [head])
        scratch = self._scratch.take(self._piece_rows * self._kind.vector_bytes)
        crc = native.library.ReadRows(
            c_extend,
            self._checked_head(record, place, head),
            descriptor,
            place.activation,
            int(self._index.vector_counts[record]),
            self._kind.vector_bytes,
            native.address(scratch),
            self._piece_rows,
            None if places is None else native.address(places),
            native.address(out),
        )
        if crc == -1:
            raise self._corrupt(record, TOO_SHORT)
        if crc < 0:
            raise OSError(-1 - crc, os.strerror(-1 - crc), self._name)
        self._fill(record, place.activation + place.size, [tail])
        self._check_tail(record, crc, tail)

    def _place(self, record: int) -> _Place:
        start, end = self._index.record_starts[record : record + 2].tolist()
        size = int(self._index.vector_counts[record]) * self._kind.vector_bytes
        return _Place(start, int(self._index.activation_starts[record]), size, end)

    def _checked_head(self, record: int, place: _Place, head: Bytes) -> int:
        """CRC32C of what comes before the activation in the data, after checking the header."""
        header, prefix = head[:HEADER_BYTES], head[HEADER_BYTES:]
        check_header(header, place.end - place.start, self._name, record, place.start)
        return extend(0, prefix)

    def _check_tail(self, record: int, crc: int, tail: Bytes) -> None:
        """Compares the CRC of the data with the footer, given that of all up to the activation."""
        suffix, footer = tail[:-FOOTER_BYTES], tail[-FOOTER_BYTES:]
        if frame_footer(extend(crc, suffix)) != footer.tobytes():
            raise self._corrupt(record, DATA_CRC)

    def _small(self, run: Run) -> Iterator[Bytes]:
        """The activations of many records, end to end."""
        index = self._index
        offset = int(index.record_starts[run.first])
        starts = index.record_starts[run.first : run.last] - offset
        ends = index.record_starts[run.first + 1 : run.last + 1] - offset
        block = self._scratch.take(int(ends[-1]))
        self._fill(run.first, offset, [block])
        headers = windows(block, HEADER_BYTES)[starts]
        wrong = (headers != index.headers[run.first : run.last]).any(axis=1)
        if wrong.any():
            first = int(wrong.argmax())
            size = int(ends[first] - starts[first])
            place = offset + int(starts[first])
            check_header(headers[first], size, self._name, run.first + first, place)
        crcs = mask(crc32c_of_spans(block, starts + HEADER_BYTES, ends - FOOTER_BYTES))
        stored = windows(block, FOOTER_BYTES)[ends - FOOTER_BYTES].view("<u4")[:, 0]
        if (wrong := stored != crcs).any():
            raise self._corrupt(run.first + int(wrong.argmax()), DATA_CRC)
        activations = index.activation_starts[run.first : run.last] - offset
        if index.pooled:
            yield windows(block, self._kind.vector_bytes)[activations]
        else:
            sizes = index.vector_counts[run.first : run.last] * self._kind.vector_bytes
            spans = zip(activations.tolist(), (activations + sizes).tolist(), strict=True)
            yield np.concatenate([block[first:last] for first, last in spans])

    def _fill(self, record: int, offset: int, views: list[Bytes]) -> None:
        if not self._source.read(offset, views):
            raise self._corrupt(record, TOO_SHORT)

    def _corrupt(self, record: int, detail: str) -> CorruptRecordError:
        return CorruptRecordError(
            self._name, record, int(self._index.record_starts[record]), detail
        )
