"""Blocks of one site to its TFRecord files, in the stage that computes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.metrics import Metrics

from activation_dataset.format import Pooling, StorageDtype, shard_file
from activation_dataset.manifest import LayerManifest
from activation_dataset.sites import Site
from activation_dataset.writer import LayerFileWriter
from transforms.extract_activations import LayerBlock
from transforms.output_folder import OutputFolder
from transforms.whole_file import WholeFile, store_errors


@dataclass(eq=False)
class WriteLayer(beam.PTransform):
    """``LayerBlock`` of one site to files; gives the ``LayerManifest`` of each file committed."""

    folder: OutputFolder
    layer: Site
    hidden: int
    pooling: Pooling
    storage_dtype: StorageDtype

    def expand(self, blocks: beam.PCollection) -> beam.PCollection:
        return blocks | "Write" >> beam.ParDo(
            _WriteLayer(self.folder, self.layer, self.hidden, self.pooling, self.storage_dtype)
        )


class _WriteLayer(beam.DoFn):
    def __init__(
        self,
        folder: OutputFolder,
        layer: Site,
        hidden: int,
        pooling: Pooling,
        storage_dtype: StorageDtype,
    ) -> None:
        self._folder = folder
        self._layer, self._pooling = layer, pooling
        self._storage_dtype, self._hidden = storage_dtype, hidden
        self._bytes = Metrics.counter("write", "bytes")
        self._open: tuple[int, WholeFile, LayerFileWriter] | None = None

    def start_bundle(self) -> None:
        self._discard()

    def process(self, block: LayerBlock) -> Iterator[LayerManifest]:
        if self._open is None:
            file = self._folder.file(shard_file(self._layer, block.shard, block.num_shards))
            writer = LayerFileWriter(
                file.stream, self._layer, self._pooling, self._storage_dtype, self._hidden
            )
            self._open = block.shard, file, writer
        shard, file, writer = self._open
        if block.shard != shard:
            raise RuntimeError(
                f"layer {self._layer}: a block of shard {block.shard} came before shard {shard} "
                "was complete; the runner must keep extraction and writing in one stage"
            )
        with store_errors(file.path):
            writer.append(block.samples, block.vectors, block.vector_counts)
            file.start_writeback()
        if block.is_last:
            manifest = writer.finish(shard, block.num_shards)
            file.commit(manifest.file.crc32c)
            self._open = None
            self._bytes.inc(manifest.file.bytes)
            yield manifest

    def finish_bundle(self) -> None:
        if self._open is not None:
            shard = self._open[0]
            self._discard()
            raise RuntimeError(f"layer {self._layer}: shard {shard} ended before its last block")

    def teardown(self) -> None:
        self._discard()

    def _discard(self) -> None:
        if self._open is not None:
            self._open[1].discard()
            self._open = None
