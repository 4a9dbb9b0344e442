"""Writer of one layer file: one site of one shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import Buffer, crc32c, extend, to_text
from activation_dataset.format import shard_file
from activation_dataset.manifest import FileEntry, LayerManifest, sample_order
from activation_dataset.record import RecordFrame, RecordKind
from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics
from activation_dataset.storage_dtype import numpy_dtype
from activation_dataset.tfrecord import HEADER_BYTES, frame_footer

# The writer joins records with smaller payloads into blocks, and writes larger ones without a copy.
_JOINED_PAYLOAD = 1 << 16
_JOINED_BLOCK = 1 << 20


class LayerFileWriter:
    """Writer of the records of one layer file, with its checksum and statistics.

    The bytes depend only on the samples and vectors, not on the calls of `append`. The writer
    starts at the stream's position. The caller flushes and closes the stream.
    """

    def __init__(self, stream: BinaryIO, site: Site, kind: RecordKind) -> None:
        self._stream = stream
        self._site = site
        self._kind = kind
        self._statistics = LayerStatistics.empty(kind.hidden)
        self._sample_ids: list[str] = []
        self._tokens = self._vectors = self._bytes = self._crc = 0
        self._joined: list[Buffer] = []
        self._joined_bytes = 0

    def append(
        self, frames: Sequence[RecordFrame], vectors: NDArray[Any], statistics: LayerStatistics
    ) -> None:
        """Write one record for each frame.

        Args:
            frames: frames of the samples, in the order of the file.
            vectors: [sum of the frames' vectors, row elements] of `numpy_dtype` or
                ml_dtypes.bfloat16. The caller may reuse the buffer after the call.
            statistics: statistics of exactly these vectors.

        Raises:
            ValueError: if the arguments contradict each other. Nothing was written.
            TypeError: if the vectors have the wrong dtype. Nothing was written.
            OSError: if the stream did not accept all bytes.
        """
        payload = self._bytes_of(frames, vectors, statistics)
        start = 0
        for frame in frames:
            end = start + frame.payload_bytes
            self._write_record(frame, payload[start:end])
            self._tokens += frame.num_tokens
            start = end
        self._write_joined()
        self._sample_ids += [frame.sample_id for frame in frames]
        self._vectors += len(vectors)
        self._statistics = self._statistics.merge(statistics)

    def finish(self, shard: int, num_shards: int, ops: str) -> LayerManifest:
        """Return the manifest of the file."""
        path = shard_file(self._site, shard, num_shards)
        return LayerManifest(
            shard=shard,
            samples=len(self._sample_ids),
            tokens=self._tokens,
            vectors=self._vectors,
            order=sample_order(self._sample_ids),
            ops=ops,
            site=self._site,
            file=FileEntry(path, self._bytes, to_text(self._crc)),
            statistics=self._statistics,
        )

    def _bytes_of(
        self, frames: Sequence[RecordFrame], vectors: NDArray[Any], statistics: LayerStatistics
    ) -> NDArray[np.uint8]:
        expected = sum(frame.vectors for frame in frames)
        if vectors.shape != (expected, self._kind.row_elements):
            raise ValueError(
                f"vectors have shape {vectors.shape}, expected "
                f"[{expected}, {self._kind.row_elements}]"
            )
        if statistics.count + statistics.nonfinite_count != expected:
            raise ValueError(
                f"statistics count {statistics.count + statistics.nonfinite_count} vectors, "
                f"expected {expected}"
            )
        for frame in frames:
            if frame.payload_bytes != frame.vectors * self._kind.vector_bytes:
                raise ValueError(
                    f"the frame of sample {frame.sample_id!r} has {frame.payload_bytes} bytes of "
                    f"vectors, expected {frame.vectors * self._kind.vector_bytes}"
                )
        if vectors.dtype.name == "bfloat16":
            vectors = vectors.view(np.uint16)
        dtype = numpy_dtype(self._kind.storage_dtype)
        if vectors.dtype != dtype:
            raise TypeError(
                f"vectors have dtype {vectors.dtype}, expected {self._kind.storage_dtype}"
            )
        return np.ascontiguousarray(vectors).reshape(-1).view(np.uint8)

    def _write_record(self, frame: RecordFrame, payload: NDArray[np.uint8]) -> None:
        footer = frame_footer(crc32c(frame.head[HEADER_BYTES:], payload, frame.suffix))
        if frame.payload_bytes <= _JOINED_PAYLOAD:
            self._joined += (frame.head, payload, frame.suffix, footer)
            self._joined_bytes += frame.size
            if self._joined_bytes >= _JOINED_BLOCK:
                self._write_joined()
            return
        self._write_joined()
        for piece in (frame.head, payload, frame.suffix, footer):
            self._write(piece)

    def _write_joined(self) -> None:
        if self._joined:
            self._write(b"".join(self._joined))
            self._joined.clear()
            self._joined_bytes = 0

    def _write(self, block: Buffer) -> None:
        written = self._stream.write(block)
        if written is not None and written != len(block):
            raise OSError(f"only {written} of {len(block)} bytes were written")
        self._crc = extend(self._crc, block)
        self._bytes += len(block)
