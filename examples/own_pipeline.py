"""A Beam pipeline of your own around the transforms: the mean norm of each layer's activations.

    python -m examples.own_pipeline examples/tasks
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from activation_dataset.format import layer_folder
from corpus.template import load_template
from qwen.settings import ExtractorSettings
from transforms import (
    AssignShards,
    ExtractActivations,
    LengthLimit,
    PlanShards,
    ReadTasks,
    TokenizeTasks,
    resolve_patterns,
)


def mean_norms(
    settings: ExtractorSettings, tasks: str, show: Callable[[object], object] = print
) -> None:
    """Show (layer, mean norm) for every site, computed where the activations are."""
    reading = ReadTasks(resolve_patterns([tasks]))
    tokenizing = TokenizeTasks(
        settings.model_path, load_template("digits"), LengthLimit(4096, "reject")
    )
    with beam.Pipeline(options=PipelineOptions()) as pipeline:
        prompts = (pipeline | reading).items | tokenizing
        plan = prompts.prompts | beam.CombineGlobally(PlanShards(samples_per_shard=64))
        blocks = prompts.prompts | AssignShards(plan) | ExtractActivations(settings, plan)
        for site in settings.sites:
            name = layer_folder(site)
            norms = blocks[name] | f"Norms of {name}" >> beam.FlatMap(
                lambda block: np.linalg.norm(block.vectors, axis=1).tolist()
            )
            mean = norms | f"Mean of {name}" >> beam.combiners.Mean.Globally()
            _ = mean | f"Show {name}" >> beam.Map(lambda value, name=name: show((name, value)))


if __name__ == "__main__":
    mean_norms(ExtractorSettings("random:tiny", layers=(10, 20)), sys.argv[1])
