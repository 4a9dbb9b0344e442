"""Extraction of activations from shards of prompts, with one output for each site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.shared import Shared

from activation_dataset.format import Pooling, layer_folder
from activation_dataset.manifest import sample_order
from activation_dataset.prompts import Prompt
from activation_dataset.record import RecordFrame, RecordKind, frame_record
from activation_dataset.sites import Site, place_of
from activation_dataset.statistics import LayerStatistics
from qwen.batching import SampleTokens
from qwen.settings import ExtractorSettings
from transforms.assign_shards import ShardPlan, rank
from transforms.extraction_progress import ProgressCounters, WorkDone
from transforms.resume import Finished, ListedFiles, finished_files, in_order
from transforms.storage import in_bucket

if TYPE_CHECKING:
    from qwen.captured import CapturedSamples
    from qwen.extractor import ActivationExtractor

FINISHED = "finished"
PROMPTS = "prompts"


@dataclass(frozen=True, eq=False)
class LayerBlock:
    """Consecutive samples of one shard at one site.

    Attributes:
        shard: number of the shard.
        num_shards: number of shards of the dataset.
        site: site of the vectors.
        frames: frames of the samples' records in file order, shared by sites of one width.
        vectors: [sum of the frames' vectors, row elements] as in `storage_dtype`.
        statistics: statistics of exactly these vectors.
        ops: implementation and device that computed the vectors, such as "xla on cpu".
        is_last: True if this block ends the shard.
    """

    shard: int
    num_shards: int
    site: Site
    frames: tuple[RecordFrame, ...]
    vectors: np.ndarray
    statistics: LayerStatistics
    ops: str
    is_last: bool

    def __reduce__(self) -> tuple[Callable[[Site], NoReturn], tuple[Site]]:
        """Encode to a stub that cannot be decoded; Beam encodes elements to estimate sizes."""
        return _refuse_to_leave_the_stage, (self.site,)


class MaterializedError(TypeError):
    """Activations that a runner moved out of the stage that computed them."""


def _refuse_to_leave_the_stage(site: Site) -> NoReturn:
    raise MaterializedError(
        f"a block of activations of layer {site} left the stage that computed it: this runner "
        "materializes between extraction and writing. Use a runner that fuses stages, and keep the "
        "steps that follow extraction free of shuffles"
    )


@dataclass(frozen=True, eq=False)
class ShardPrompts:
    """Prompts of one of `num_shards` shards, in the order of its layer files."""

    shard: int
    num_shards: int
    prompts: tuple[Prompt, ...]


def extract_shard(
    shard: int,
    num_shards: int,
    prompts: Sequence[Prompt],
    extractor: ActivationExtractor,
    on_step: Callable[[CapturedSamples], None] = lambda captured: None,
) -> Iterator[LayerBlock]:
    """Yield the blocks of a shard, site by site for every few samples.

    Only the steps in flight are in memory. `on_step` is called for every finished step.
    """
    settings, width = extractor.settings, extractor.source.config.width

    def blocks(captured: CapturedSamples, is_last: bool) -> Iterator[LayerBlock]:
        chosen = [prompts[index] for index in captured.samples]
        frames: dict[RecordKind, tuple[RecordFrame, ...]] = {}
        for site, vectors in captured.vectors.items():
            kind = settings.record_kind(width(*place_of(site)))
            statistics = captured.statistics[site]
            if kind not in frames:
                frames[kind] = tuple(frame_record(kind.sample(prompt), kind) for prompt in chosen)
            yield LayerBlock(
                shard, num_shards, site, frames[kind], vectors, statistics, extractor.ops, is_last
            )

    previous: CapturedSamples | None = None
    for captured in extractor.extract([_tokens_of(each, settings.pooling) for each in prompts]):
        on_step(captured)
        if previous is not None:
            yield from blocks(previous, is_last=False)
        previous = captured
    if previous is not None:
        yield from blocks(previous, is_last=True)


@dataclass(eq=False)
class ExtractActivations(beam.PTransform):
    """Convert (shard, prompts) to `LayerBlock`, with one output per site, named like its folder.

    The blocks of a shard are large and leave in order, within one bundle: consume them in the same
    stage, never through a shuffle.

    Two outputs are for writing a dataset: `prompts`, the `ShardPrompts` of each shard whose prompts
    must be written, and `finished`, the manifests of files in `output_dir` that an earlier run has
    finished and that are not computed again. The plan is a singleton PCollection.
    """

    settings: ExtractorSettings
    plan: beam.PCollection
    output_dir: str | None = None

    def expand(self, shards: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        tags = [layer_folder(site) for site in self.settings.sites]
        return shards | "Extract" >> beam.ParDo(
            _Extract(self.settings, self.output_dir), plan=beam.pvalue.AsSingleton(self.plan)
        ).with_outputs(*tags, FINISHED, PROMPTS)


def _tokens_of(prompt: Prompt, pooling: Pooling) -> SampleTokens:
    return SampleTokens(prompt.token_ids, None if pooling == "last" else prompt.positions)


class _Extract(beam.DoFn):
    def __init__(self, settings: ExtractorSettings, output_dir: str | None) -> None:
        self._settings, self._output_dir = settings, output_dir
        # One model per process, since a device has room for one. Unlike `load_once`, this releases
        # the model when the process runs another job.
        self._shared, self._shared_listing = Shared(), Shared()
        self._progress = ProgressCounters()
        self._resumed = Metrics.counter("extract", "layer_files_resumed")

    def process(
        self, element: tuple[int, Iterable[Prompt]], plan: ShardPlan
    ) -> Iterator[TaggedOutput]:
        shard, sites = element[0], self._settings.sites
        # Sort, because the order of arrival varies.
        prompts = sorted(element[1], key=lambda p: (rank(p.sample_id), p.sample_id))
        lengths = [prompt.num_tokens for prompt in prompts]
        self._progress.begin(plan)
        finished: Finished = {}
        if self._output_dir is not None:
            listed = self._list_files(self._output_dir, plan.num_shards)
            finished = finished_files(self._output_dir, shard, plan.num_shards, sites, listed)
        orders = {manifest.order for manifest in finished.values()}
        if set(finished) == {*sites, None} and len(orders) == 1:
            self._progress.resumed(plan, len(prompts), sum(lengths))
        else:
            pooling = self._settings.pooling
            extractor = self._open_extractor([_tokens_of(each, pooling) for each in prompts])
            ordered = tuple(prompts[index] for index in extractor.order(lengths))
            finished = in_order(finished, sample_order(each.sample_id for each in ordered))

            def on_step(captured: CapturedSamples) -> None:
                tokens = sum(lengths[index] for index in captured.samples)
                self._progress.step(plan, WorkDone(len(captured.samples), tokens, captured.slots))

            for block in extract_shard(shard, plan.num_shards, prompts, extractor, on_step):
                if block.site not in finished:
                    yield TaggedOutput(layer_folder(block.site), block)
            if None not in finished:
                yield TaggedOutput(PROMPTS, ShardPrompts(shard, plan.num_shards, ordered))
        self._resumed.inc(sum(site is not None for site in finished))
        for manifest in finished.values():
            yield TaggedOutput(FINISHED, manifest)

    def _list_files(self, output_dir: str, num_shards: int) -> ListedFiles | None:
        # Measuring a local file means reading it, so each shard measures its own files.
        if not in_bucket(output_dir):
            return None
        self._listed: ListedFiles = self._shared_listing.acquire(
            lambda: ListedFiles.of(output_dir, num_shards, self._settings.sites)
        )
        return self._listed

    def _open_extractor(self, samples: Sequence[SampleTokens]) -> ActivationExtractor:
        from qwen.extractor import open_extractor  # Only workers that compute start JAX.

        self._extractor: ActivationExtractor = self._shared.acquire(
            lambda: open_extractor(self._settings, samples)
        )
        return self._extractor
