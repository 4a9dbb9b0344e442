"""Shards of prompts to blocks of activations, one tagged output for each site and the prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.shared import Shared

from activation_dataset.format import Pooling, Sample, StorageDtype, layer_folder
from activation_dataset.manifest import LayerManifest
from activation_dataset.prompts import Prompt
from activation_dataset.record import RecordKind
from activation_dataset.sites import DEFAULT_HOOK_POINT, HookPoint, Site, sites_of
from qwen.source import open_model
from transforms.assign_shards import ShardPlan, rank
from transforms.extraction_progress import ProgressCounters, WorkDone
from transforms.resume import FinishedLayers, finished_layers

if TYPE_CHECKING:
    from qwen.extractor import ActivationExtractor, CapturedSamples


FINISHED = "finished"
PROMPTS = "prompts"


@dataclass(frozen=True)
class ExtractorSettings:
    """What a worker needs to build its ``ActivationExtractor``; the fields are its arguments.

    Attributes:
      weights_fingerprint: of the weights that the run was planned with; a worker that finds other
        ones refuses to start.
      environment: variables that JAX needs to find this worker's devices; one that is set stays.
    """

    model_path: str
    weights_fingerprint: str
    layers: tuple[int, ...]
    pooling: Pooling
    compute_dtype: StorageDtype
    storage_dtype: StorageDtype
    batch_size: int
    mesh_shape: tuple[int, int] | None
    compile_cache: str
    environment: tuple[tuple[str, str], ...] = ()
    hook_points: tuple[HookPoint, ...] = (DEFAULT_HOOK_POINT,)

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is captured: every hook point of every layer."""
        return sites_of(self.layers, self.hook_points)

    def build(self, lengths_to_come: Sequence[int] = ()) -> ActivationExtractor:
        """Loads the model onto this worker's devices. Imports JAX.

        Args:
          lengths_to_come: as for the extractor.

        Raises:
          ValueError: if the weights are not those of the plan, or anything does not fit.
        """
        for name, value in self.environment:
            os.environ.setdefault(name, value)
        from qwen.compile_cache import use_compile_cache
        from qwen.extractor import ActivationExtractor

        use_compile_cache(self.compile_cache)
        source = open_model(self.model_path)
        if (found := source.weights_fingerprint()) != self.weights_fingerprint:
            raise ValueError(
                f"{self.model_path}: this worker sees weights {found}, the run was started with "
                f"{self.weights_fingerprint}. Give every worker the same model."
            )
        return ActivationExtractor(
            source,
            self.layers,
            pooling=self.pooling,
            compute_dtype=self.compute_dtype,
            storage_dtype=self.storage_dtype,
            batch_size=self.batch_size,
            mesh_shape=self.mesh_shape,
            hook_points=self.hook_points,
            lengths_to_come=lengths_to_come,
        )


@dataclass(frozen=True, eq=False)
class LayerBlock:
    """Consecutive samples of one shard at one site.

    Attributes:
      num_shards: of the dataset.
      samples: in the order of the file.
      vectors: [sum(vector_counts), hidden] in the storage dtype.
      vector_counts: vectors of each sample.
      is_last: whether this block ends the shard.
    """

    shard: int
    num_shards: int
    layer: Site
    samples: tuple[Sample, ...]
    vectors: np.ndarray
    vector_counts: tuple[int, ...]
    is_last: bool


@dataclass(frozen=True, eq=False)
class ShardPrompts:
    """The prompts of one of ``num_shards`` shards, in the order of its layer files."""

    shard: int
    num_shards: int
    prompts: tuple[Prompt, ...]


def ordered_prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts of a shard in an order that does not depend on how they arrived."""
    return sorted(prompts, key=lambda p: (rank(p.sample_id), p.sample_id))


def extract_shard(
    shard: int,
    num_shards: int,
    prompts: Sequence[Prompt],
    extractor: ActivationExtractor,
    on_step: Callable[[CapturedSamples], None] = lambda captured: None,
) -> Iterator[LayerBlock]:
    """The blocks of a shard, site by site for every few samples; holds only what is in flight.

    Args:
      on_step: told of every step that has come back from the device.
    """
    samples = [stored_sample(prompt, extractor.pooling) for prompt in prompts]
    previous: CapturedSamples | None = None
    for captured in extractor.extract([prompt.token_ids for prompt in prompts]):
        on_step(captured)
        if previous is not None:
            yield from _blocks(shard, num_shards, samples, previous, is_last=False)
        previous = captured
    if previous is not None:
        yield from _blocks(shard, num_shards, samples, previous, is_last=True)


def still_valid(
    finished: FinishedLayers, prompts: Sequence[Prompt], extractor: ActivationExtractor
) -> Mapping[Site, LayerManifest]:
    """The finished layers, if this worker would write the samples in the same order.

    It would not if it has another number of devices than the worker that wrote them.
    """
    return finished.manifests if file_order(prompts, extractor) == finished.order else {}


def file_order(prompts: Sequence[Prompt], extractor: ActivationExtractor) -> tuple[str, ...]:
    """The sample ids of a shard in the order in which its files have them."""
    order = extractor.order([prompt.num_tokens for prompt in prompts])
    return tuple(prompts[index].sample_id for index in order)


def stored_sample(prompt: Prompt, pooling: str) -> Sample:
    """A prompt as the records of a layer describe it."""
    ids = prompt.token_ids[-1:] if pooling == "last" else prompt.token_ids
    return Sample(prompt.sample_id, prompt.task_id, ids, prompt.num_tokens)


def _blocks(
    shard: int,
    num_shards: int,
    samples: Sequence[Sample],
    captured: CapturedSamples,
    is_last: bool,
) -> Iterator[LayerBlock]:
    chosen = tuple(samples[index] for index in captured.samples)
    counts = captured.vector_counts
    for layer, vectors in captured.layers.items():
        yield LayerBlock(shard, num_shards, layer, chosen, vectors, counts, is_last)


@dataclass(eq=False)
class ExtractActivations(beam.PTransform):
    """(shard, prompts) to ``LayerBlock``, one output for each site, named as its folder.

    The blocks of a shard leave in order, within one bundle, and are large: consume them in the same
    stage, never through a shuffle. Layer files that are already there and sound are not computed
    again: their ``LayerManifest`` is in the output ``finished``. The output ``prompts`` has the
    ``ShardPrompts`` of each shard.

    Attributes:
      plan: a singleton PCollection of the ``ShardPlan``.
    """

    settings: ExtractorSettings
    output_dir: str
    hidden: int
    plan: beam.PCollection

    def expand(self, shards: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        tags = [layer_folder(site) for site in self.settings.sites]
        return shards | "Extract" >> beam.ParDo(
            _Extract(self.settings, self.output_dir, self.hidden),
            plan=beam.pvalue.AsSingleton(self.plan),
        ).with_outputs(*tags, FINISHED, PROMPTS)


class _Extract(beam.DoFn):
    def __init__(self, settings: ExtractorSettings, output_dir: str, hidden: int) -> None:
        self._settings, self._output_dir = settings, output_dir
        self._kind = RecordKind(settings.pooling, settings.storage_dtype, hidden)
        self._shared = Shared()
        self._progress = ProgressCounters()
        self._resumed = Metrics.counter("extract", "layer_files_resumed")

    def process(
        self, element: tuple[int, Iterable[Prompt]], plan: ShardPlan
    ) -> Iterator[TaggedOutput]:
        shard, prompts = element[0], ordered_prompts(element[1])
        samples = [stored_sample(prompt, self._settings.pooling) for prompt in prompts]
        layers = self._settings.sites
        self._progress.begin(plan)
        finished = finished_layers(
            self._output_dir, shard, plan.num_shards, layers, samples, self._kind
        )
        manifests, order = finished.manifests, finished.order
        if len(manifests) == len(layers):
            tokens = sum(prompt.num_tokens for prompt in prompts)
            self._progress.resumed(plan, len(prompts), tokens)
        else:
            # Once in a process, however many threads: a device has room for one model.
            lengths = [prompt.num_tokens for prompt in prompts]
            self._extractor = self._shared.acquire(lambda: self._settings.build(lengths))
            manifests = still_valid(finished, prompts, self._extractor) if manifests else {}

            def on_step(captured: CapturedSamples) -> None:
                tokens = sum(prompts[index].num_tokens for index in captured.samples)
                done = WorkDone(len(captured.samples), tokens, captured.slots)
                self._progress.step(plan, done)

            for block in extract_shard(shard, plan.num_shards, prompts, self._extractor, on_step):
                if block.layer not in manifests:
                    yield TaggedOutput(layer_folder(block.layer), block)
            order = file_order(prompts, self._extractor)
        by_id = {prompt.sample_id: prompt for prompt in prompts}
        ordered = tuple(by_id[each] for each in order)
        yield TaggedOutput(PROMPTS, ShardPrompts(shard, plan.num_shards, ordered))
        self._resumed.inc(len(manifests))
        for manifest in manifests.values():
            yield TaggedOutput(FINISHED, manifest)
