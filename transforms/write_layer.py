"""Blocks of one site to its TFRecord files, in the stage that computes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.metrics import Metrics

from activation_dataset.format import shard_file
from activation_dataset.manifest import LayerManifest
from activation_dataset.record import RecordKind
from activation_dataset.sites import Site
from activation_dataset.writer import LayerFileWriter
from transforms.extract_activations import LayerBlock
from transforms.output_folder import OutputFolder
from transforms.resume import commit_file
from transforms.storage import storage_errors
from transforms.whole_file import WholeFile


@dataclass(eq=False)
class WriteLayer(beam.PTransform):
    """`LayerBlock` of one site to files in a claimed folder; gives the `LayerManifest` of each."""

    folder: OutputFolder
    site: Site
    kind: RecordKind

    def expand(self, blocks: beam.PCollection) -> beam.PCollection:
        return blocks | "Write" >> beam.ParDo(_WriteLayer(self.folder, self.site, self.kind))


class _WriteLayer(beam.DoFn):
    def __init__(self, folder: OutputFolder, site: Site, kind: RecordKind) -> None:
        self._folder, self._site, self._kind = folder, site, kind
        self._bytes = Metrics.counter("write", "bytes")
        self._open: tuple[int, WholeFile, LayerFileWriter] | None = None

    def start_bundle(self) -> None:
        self._discard()

    def process(self, block: LayerBlock) -> Iterator[LayerManifest]:
        if self._open is None:
            file = self._folder.file(shard_file(self._site, block.shard, block.num_shards))
            self._open = block.shard, file, LayerFileWriter(file.stream, self._site, self._kind)
        shard, file, writer = self._open
        if block.shard != shard:
            raise RuntimeError(
                f"layer {self._site}: a block of shard {block.shard} came before shard {shard} "
                "was complete; the runner must keep extraction and writing in one stage"
            )
        with storage_errors(file.path):
            writer.append(block.frames, block.vectors, block.statistics)
            file.start_writeback()
        if block.is_last:
            manifest = writer.finish(shard, block.num_shards, block.ops)
            commit_file(self._folder, self._site, file, manifest, block.num_shards)
            self._open = None
            self._bytes.inc(manifest.file.bytes)
            yield manifest

    def finish_bundle(self) -> None:
        if self._open is not None:
            shard = self._open[0]
            self._discard()
            raise RuntimeError(f"layer {self._site}: shard {shard} ended before its last block")

    def teardown(self) -> None:
        self._discard()

    def _discard(self) -> None:
        if self._open is not None:
            self._open[1].discard()
            self._open = None
