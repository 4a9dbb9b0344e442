"""Writing one layer of one shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from activation_dataset.checksum import Buffer, combine, crc32c, extend, to_text
from activation_dataset.format import (
    POOLINGS,
    Pooling,
    Sample,
    StorageDtype,
    shard_file,
    to_storage,
)
from activation_dataset.manifest import LayerFile, LayerManifest
from activation_dataset.record import RecordKind, frame_record
from activation_dataset.sites import Site
from activation_dataset.statistics_builder import StatisticsBuilder
from activation_dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, frame_footer

# Payloads up to here are gathered into one write; larger ones are written where they lie.
_GATHERED_PAYLOAD = 1 << 16
_GATHERED_BLOCK = 1 << 20


class LayerFileWriter:
    """Writes the records of one layer file, keeping its checksum and statistics.

    The bytes depend on the samples and rows alone, not on how they are split into `append` calls.

    Args:
        stream: where the bytes go, from its position on; neither flushed nor closed.
        layer: the site that the vectors are of.
        pooling: decides how many rows a sample has, and the feature `shape`.
        storage_dtype: of the stored elements.
        hidden: elements of a vector.
    """

    def __init__(
        self,
        stream: BinaryIO,
        layer: Site,
        pooling: Pooling,
        storage_dtype: StorageDtype,
        hidden: int,
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
        self._stream = stream
        self._layer = layer
        self._kind = RecordKind(pooling, storage_dtype, hidden)
        self._statistics = StatisticsBuilder(hidden)
        self._samples = self._tokens = self._vectors = self._bytes = self._crc = 0
        self._gathered: list[Buffer] = []
        self._gathered_bytes = 0

    def append(
        self, samples: Sequence[Sample], rows: NDArray[Any], row_counts: Sequence[int]
    ) -> None:
        """Writes one record for each sample.

        Args:
            samples: the samples, in the order of the file.
            rows: [sum(row_counts), hidden] float32 or bfloat16 (see `to_storage`): the samples'
                vectors end to end. Free to be reused after the call.
            row_counts: rows of each sample: 1 if pooled, else its tokens.

        Raises:
            ValueError: the arguments contradict each other; nothing has been written.
            OSError: the stream did not take all bytes.
        """
        self._check(samples, rows, row_counts)
        stored = to_storage(rows, self._kind.storage_dtype)
        self._statistics.update(stored)
        elements = stored.reshape(-1).view(np.uint8).data
        start = 0
        for sample, count in zip(samples, row_counts, strict=True):
            end = start + count * self._kind.vector_bytes
            self._write_record(sample, elements[start:end])
            self._tokens += sample.num_tokens
            start = end
        self._flush()
        self._samples += len(samples)
        self._vectors += len(rows)

    def finish(self, shard: int, num_shards: int) -> LayerManifest:
        """What was written, as a shard of the dataset. Closing the stream is up to the caller."""
        return LayerManifest(
            shard=shard,
            samples=self._samples,
            tokens=self._tokens,
            vectors=self._vectors,
            file=LayerFile(
                layer=self._layer,
                path=shard_file(self._layer, shard, num_shards),
                bytes=self._bytes,
                crc32c=to_text(self._crc),
                statistics=self._statistics.result(),
            ),
        )

    def _check(
        self, samples: Sequence[Sample], rows: NDArray[Any], row_counts: Sequence[int]
    ) -> None:
        if len(samples) != len(row_counts):
            raise ValueError(f"{len(samples)} samples, but {len(row_counts)} row counts")
        for sample, count in zip(samples, row_counts, strict=True):
            self._kind.check(sample)
            if count != self._kind.vectors(sample):
                raise ValueError(
                    f"sample {sample.sample_id!r} has {count} rows; with pooling "
                    f"{self._kind.pooling!r} a prompt of {sample.num_tokens} tokens needs "
                    f"{self._kind.vectors(sample)}"
                )
        if rows.shape != (sum(row_counts), self._kind.hidden):
            raise ValueError(
                f"rows have shape {rows.shape}, expected [{sum(row_counts)}, {self._kind.hidden}]"
            )

    def _write_record(self, sample: Sample, payload: memoryview) -> None:
        frame = frame_record(sample, self._kind)
        crc = crc32c(frame.prefix, payload, frame.suffix)
        footer = frame_footer(crc)
        if len(payload) <= _GATHERED_PAYLOAD:
            self._gathered += (frame.head, payload, frame.suffix, footer)
            self._gathered_bytes += frame.size
            if self._gathered_bytes >= _GATHERED_BLOCK:
                self._flush()
            return
        self._flush()
        for piece in (frame.head, payload, frame.suffix, footer):
            _write_whole(self._stream, piece)
        # The file's CRC from the record's: a large payload is summed once.
        self._crc = extend(self._crc, frame.head[:HEADER_BYTES])
        self._crc = combine(self._crc, crc, frame.size - HEADER_BYTES - FOOTER_BYTES)
        self._crc = extend(self._crc, footer)
        self._bytes += frame.size

    def _flush(self) -> None:
        if self._gathered:
            block = b"".join(self._gathered)
            _write_whole(self._stream, block)
            self._crc = extend(self._crc, block)
            self._bytes += len(block)
            self._gathered.clear()
            self._gathered_bytes = 0


def _write_whole(stream: BinaryIO, block: Buffer) -> None:
    written = stream.write(block)
    if written is not None and written != len(block):
        raise OSError(f"only {written} of {len(block)} bytes were written")
