"""Records that are read together, and what is known of their bytes before they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import combine, crc32c_of_spans, extend
from activation_dataset.record import RecordFrame
from activation_dataset.reuse import Scratch, windows
from activation_dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, frame_footer, mask
from activation_dataset.verifying.canonical import NotCanonicalError, fill

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RecordGroup:
    """Some records of a layer file, one behind the other. Positions are in the group.

    Attributes:
        ends: [n] int64, where each record ends.
        payload_starts, payload_ends: [n] int64, where each activation lies.
        known: [bytes] uint8, all bytes but the activations, end to end, with zeros for the CRCs of
            the data, which depend on the activations.
    """

    ends: Int64s
    payload_starts: Int64s
    payload_ends: Int64s
    known: Bytes

    @classmethod
    def of_frames(cls, frames: Sequence[RecordFrame]) -> RecordGroup:
        """The records with those frames."""
        ends = np.cumsum([frame.size for frame in frames])
        starts = ends - [frame.size for frame in frames] + [len(frame.head) for frame in frames]
        known = [part for f in frames for part in (f.head, f.suffix, bytes(FOOTER_BYTES))]
        return cls(
            ends,
            starts,
            starts + [frame.payload_bytes for frame in frames],
            np.frombuffer(b"".join(known), np.uint8),
        )

    @classmethod
    def of_block(cls, block: Bytes, ends: Int64s, starts: Int64s, stops: Int64s) -> RecordGroup:
        """Records that were read and are as they must be.

        Args:
            block: [bytes] uint8, their bytes.
            ends: as the attribute.
            starts, stops: where each activation lies.
        """
        group = cls(ends, starts, stops, np.empty(0, np.uint8))
        known = block[group._places]
        known[group._crcs] = 0
        return cls(ends, starts, stops, known)

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return int(self.ends[-1])

    def read(
        self,
        stream: BinaryIO,
        crc: int,
        scratch: Scratch,
        piece_bytes: Callable[[], int],
        take: Callable[[Bytes], object],
    ) -> int:
        """Reads such records; all bytes but the activations are compared with what is known.

        Args:
            stream: at the group's first byte.
            crc: CRC32C of all before it.
            scratch: for what is read.
            piece_bytes: how much to read next of an activation that is read by itself.
            take: called with the activations' bytes, in pieces, each overwritten by the next.

        Returns:
            CRC32C of all that `crc` covers, followed by the group.

        Raises:
            NotCanonicalError: it is something else. What was taken before is of no use.
        """
        if len(self.ends) == 1:
            return self._read_large(stream, crc, scratch, piece_bytes, take)
        block = scratch.take(self.size)
        _fill(stream, block)
        found = block[self._places]
        stored = found[self._crcs].reshape(-1, FOOTER_BYTES).view("<u4")[:, 0]
        found[self._crcs] = 0
        crcs = crc32c_of_spans(block, self._starts + HEADER_BYTES, self.ends - FOOTER_BYTES)
        _require(np.array_equal(found, self.known) and np.array_equal(stored, mask(crcs)))
        take(self._payloads(block))
        return extend(crc, block)

    def _read_large(
        self,
        stream: BinaryIO,
        crc: int,
        scratch: Scratch,
        piece_bytes: Callable[[], int],
        take: Callable[[Bytes], object],
    ) -> int:
        """As `read`, of one record, whose pieces stay in a core's cache and are summed once."""
        start, stop = int(self.payload_starts[0]), int(self.payload_ends[0])
        head, tail = np.empty(start, np.uint8), np.empty(len(self.known) - start, np.uint8)
        _fill(stream, head)
        data_crc = extend(0, head[HEADER_BYTES:])
        missing = stop - start
        while missing:
            piece = scratch.take(min(piece_bytes(), missing))
            _fill(stream, piece)
            data_crc = extend(data_crc, piece)
            take(piece)
            missing -= len(piece)
        _fill(stream, tail)
        suffix, footer = tail[:-FOOTER_BYTES], tail[-FOOTER_BYTES:]
        data_crc = extend(data_crc, suffix)
        _require(np.array_equal(head, self.known[:start]))
        _require(np.array_equal(suffix, self.known[start:-FOOTER_BYTES]))
        _require(footer.tobytes() == frame_footer(data_crc))
        data_bytes = self.size - HEADER_BYTES - FOOTER_BYTES
        crc = combine(extend(crc, head[:HEADER_BYTES]), data_crc, data_bytes)
        return extend(crc, footer)

    def _payloads(self, block: Bytes) -> Bytes:
        """The activations' bytes, end to end."""
        sizes = self.payload_ends - self.payload_starts
        if (sizes == sizes[0]).all():
            return windows(block, int(sizes[0]))[self.payload_starts].reshape(-1)
        spans = zip(self.payload_starts.tolist(), self.payload_ends.tolist(), strict=True)
        return np.concatenate([block[start:end] for start, end in spans])

    @cached_property
    def _starts(self) -> Int64s:
        return np.concatenate([[0], self.ends[:-1]])

    @cached_property
    def _places(self) -> Int64s:
        """[bytes] int64: where the known bytes lie."""
        gap_starts = np.concatenate([[0], self.payload_ends])
        lengths = np.concatenate([self.payload_starts, self.ends[-1:]]) - gap_starts
        first = np.cumsum(lengths) - lengths
        places: Int64s = np.arange(int(lengths.sum())) + np.repeat(gap_starts - first, lengths)
        return places

    @cached_property
    def _crcs(self) -> Int64s:
        """[4 * n] int64: where the CRCs of the data lie in the known bytes."""
        payloads = np.cumsum(self.payload_ends - self.payload_starts)
        first = self.ends - payloads - FOOTER_BYTES
        return np.repeat(first, FOOTER_BYTES) + np.tile(np.arange(FOOTER_BYTES), len(first))


def _fill(stream: BinaryIO, block: Bytes) -> None:
    if not fill(stream, block):
        raise NotCanonicalError("the file ends too early")


def _require(condition: bool) -> None:
    if not condition:
        raise NotCanonicalError("the records are others than expected")
