"""Writing of one site's blocks to TFRecord files, in the stage that computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, cast

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from activation_dataset.format import shard_file
from activation_dataset.manifest import LayerManifest
from activation_dataset.record import RecordKind
from activation_dataset.sites import Site
from activation_dataset.writer import LayerFileWriter
from transforms.background_writer import PROCESS_BUDGET, WAITING_BYTES, BackgroundWriter
from transforms.extract_activations import LayerBlock
from transforms.output_folder import OutputFolder
from transforms.resume import commit_file
from transforms.storage import storage_errors
from transforms.whole_file import WholeFile


@dataclass(eq=False)
class WriteLayer(beam.PTransform):
    """Write the blocks of one site to files in a claimed folder, and output their `LayerManifest`.

    Files are written in the background; `upload_memory` bounds the queued bytes of a process.
    """

    folder: OutputFolder
    site: Site
    kind: RecordKind
    upload_memory: int = WAITING_BYTES

    def expand(self, blocks: beam.PCollection) -> beam.PCollection:
        return blocks | "Write" >> beam.ParDo(
            _WriteLayer(self.folder, self.site, self.kind, self.upload_memory)
        )


@dataclass(frozen=True, eq=False)
class _OpenFile:
    """A shard that is being written: its blocks go through `background` to `file`."""

    shard: int
    file: WholeFile
    background: BackgroundWriter
    writer: LayerFileWriter


@dataclass(frozen=True, eq=False)
class _Committing:
    """A file with all its blocks, whose commit runs in the background."""

    file: WholeFile
    manifest: LayerManifest
    done: Future[None]


class _WriteLayer(beam.DoFn):
    """Write blocks to files. The end of a bundle commits its files and outputs their manifests."""

    def __init__(
        self,
        folder: OutputFolder,
        site: Site,
        kind: RecordKind,
        upload_memory: int = WAITING_BYTES,
    ) -> None:
        self._folder, self._site, self._kind = folder, site, kind
        self._upload_memory = upload_memory
        self._bytes = Metrics.counter("write", "bytes")
        self._open: _OpenFile | None = None
        self._committing: list[_Committing] = []

    def setup(self) -> None:
        PROCESS_BUDGET.limit = self._upload_memory

    def start_bundle(self) -> None:
        self._discard()

    def process(self, block: LayerBlock) -> None:
        if self._open is None:
            self._wait_for(self._committing[:-1])  # Bounds threads and open files.
            self._open = self._begin(block)
        shard, file, writer = self._open.shard, self._open.file, self._open.writer
        if block.shard != shard:
            raise RuntimeError(
                f"layer {self._site}: a block of shard {block.shard} came before shard {shard} "
                "was complete; the runner must keep extraction and writing in one stage"
            )
        with storage_errors(file.path):
            writer.append(block.frames, block.vectors, block.statistics)
        if block.is_last:
            manifest = writer.finish(shard, block.num_shards, block.ops)
            commit = partial(
                commit_file, self._folder, self._site, file, manifest, block.num_shards
            )
            done = self._open.background.finish(commit)
            self._committing.append(_Committing(file, manifest, done))
            self._open = None

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._open is not None:
            shard = self._open.shard
            self._discard()
            raise RuntimeError(f"layer {self._site}: shard {shard} ended before its last block")
        self._wait_for(self._committing)
        committed, self._committing = self._committing, []
        for each in committed:
            self._bytes.inc(each.manifest.file.bytes)
            window = GlobalWindow()
            yield WindowedValue(each.manifest, window.max_timestamp(), (window,))

    def teardown(self) -> None:
        self._discard()

    def _begin(self, block: LayerBlock) -> _OpenFile:
        file = self._folder.file(shard_file(self._site, block.shard, block.num_shards))
        background = BackgroundWriter(file.stream, file.start_writeback)
        # The writer of a file only calls `write`.
        writer = LayerFileWriter(cast(BinaryIO, background), self._site, self._kind)
        return _OpenFile(block.shard, file, background, writer)

    def _wait_for(self, files: Sequence[_Committing]) -> None:
        for each in files:
            with storage_errors(each.file.path):
                each.done.result()

    def _discard(self) -> None:
        """Discard the files of a failed bundle; pending commits end first."""
        if self._open is not None:
            self._open.background.abandon()
            self._open.file.discard()
            self._open = None
        wait([each.done for each in self._committing])
        for each in self._committing:
            each.file.discard()  # A committed file leaves nothing to discard.
        self._committing = []
