"""Shards of prompts to blocks of activations, one tagged output for each layer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.shared import Shared

from activation_dataset.format import Sample, layer_folder
from qwen2.source import open_model
from transforms.assign_shards import rank
from transforms.tokenize_tasks import Prompt

if TYPE_CHECKING:
    from qwen2.extractor import ActivationExtractor, CapturedSamples


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
    pooling: str
    compute_dtype: str
    storage_dtype: str
    batch_size: int
    mesh_shape: tuple[int, int] | None
    environment: tuple[tuple[str, str], ...] = ()

    def build(self) -> ActivationExtractor:
        """Loads the model onto this worker's devices. Imports JAX.

        Raises:
          ValueError: if the weights are not those of the plan, or anything does not fit.
        """
        for name, value in self.environment:
            os.environ.setdefault(name, value)
        from qwen2.extractor import ActivationExtractor

        source = open_model(self.model_path)
        if (found := source.weights_fingerprint()) != self.weights_fingerprint:
            raise ValueError(
                f"{self.model_path}: this worker sees weights {found}, the run was started with "
                f"{self.weights_fingerprint}. Give every worker the same model."
            )
        return ActivationExtractor(
            source,
            self.layers,
            pooling=self.pooling,  # type: ignore[arg-type]
            compute_dtype=self.compute_dtype,  # type: ignore[arg-type]
            storage_dtype=self.storage_dtype,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            mesh_shape=self.mesh_shape,
        )


@dataclass(frozen=True, eq=False)
class LayerBlock:
    """Consecutive samples of one layer of one shard.

    Attributes:
      samples: in the order of the file.
      vectors: [sum(vector_counts), hidden] in the storage dtype.
      vector_counts: vectors of each sample.
      is_last: whether this block ends the shard.
    """

    shard: int
    layer: int
    samples: tuple[Sample, ...]
    vectors: np.ndarray
    vector_counts: tuple[int, ...]
    is_last: bool


def extract_shard(
    shard: int, prompts: Iterable[Prompt], extractor: ActivationExtractor
) -> Iterator[LayerBlock]:
    """The blocks of a shard, layer by layer for every few samples; holds only what is in flight.

    The order in which the prompts arrive does not matter.
    """
    ordered = sorted(prompts, key=lambda p: (rank(p.sample_id), p.sample_id))
    samples = [_sample(prompt, extractor.pooling) for prompt in ordered]
    previous: CapturedSamples | None = None
    for captured in extractor.extract([prompt.token_ids for prompt in ordered]):
        if previous is not None:
            yield from _blocks(shard, samples, previous, is_last=False)
        previous = captured
    if previous is not None:
        yield from _blocks(shard, samples, previous, is_last=True)


def _sample(prompt: Prompt, pooling: str) -> Sample:
    ids = prompt.token_ids[-1:] if pooling == "last" else prompt.token_ids
    return Sample(prompt.sample_id, prompt.task_id, ids, len(prompt.token_ids))


def _blocks(
    shard: int, samples: Sequence[Sample], captured: CapturedSamples, is_last: bool
) -> Iterator[LayerBlock]:
    chosen = tuple(samples[index] for index in captured.samples)
    for layer, vectors in captured.layers.items():
        yield LayerBlock(shard, layer, chosen, vectors, captured.vector_counts, is_last)


@dataclass(eq=False)
class ExtractActivations(beam.PTransform):
    """(shard, prompts) to ``LayerBlock``, one output ``layer_N`` for each layer.

    The blocks of a shard leave in order, within one bundle, and are large: consume them in the same
    stage, never through a shuffle.
    """

    settings: ExtractorSettings

    def expand(self, shards: beam.PCollection) -> Mapping[int, beam.PCollection]:
        tags = {layer: layer_folder(layer) for layer in self.settings.layers}
        outputs = shards | "Extract" >> beam.ParDo(_Extract(self.settings)).with_outputs(
            *tags.values()
        )
        return {layer: outputs[tag] for layer, tag in tags.items()}


class _Extract(beam.DoFn):
    def __init__(self, settings: ExtractorSettings) -> None:
        self._settings = settings
        self._shared = Shared()
        self._samples = Metrics.counter("extract", "samples")
        self._tokens = Metrics.counter("extract", "tokens")

    def setup(self) -> None:
        # Once in a process, however many threads: a device has room for one model.
        self._extractor: Any = self._shared.acquire(self._settings.build)

    def process(self, element: tuple[int, Iterable[Prompt]]) -> Iterator[TaggedOutput]:
        shard, prompts = element
        first_layer = self._settings.layers[0]
        for block in extract_shard(shard, prompts, self._extractor):
            if block.layer == first_layer:
                self._samples.inc(len(block.samples))
                self._tokens.inc(sum(sample.num_tokens for sample in block.samples))
            yield TaggedOutput(layer_folder(block.layer), block)
