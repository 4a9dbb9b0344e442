"""Custom Beam pipeline of the project's transforms that prints each layer's mean activation norm.

Run it, with Beam options as additional arguments if needed::

    python -m examples.own_pipeline --tasks_file examples/tasks

The workers compute the norms in the stage that computes the activations, so only numbers leave that
stage. The pipeline prints what the transforms reject.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from activation_dataset.closed_pipe import until_closed
from activation_dataset.format import layer_folder
from corpus.task import RejectedTask
from corpus.template import load_template
from qwen.settings import ExtractorSettings
from transforms import (
    REJECTED,
    AssignShards,
    ExtractActivations,
    LayerBlock,
    PlanShards,
    ReadTasks,
    SampleRules,
    TokenizeTasks,
    resolve_patterns,
)


def mean_norms(settings: ExtractorSettings, tasks: str, beam_flags: Sequence[str]) -> None:
    """Print the mean norm of every site.

    Args:
        settings: model and sites to capture.
        tasks: file, folder or glob of tasks.
        beam_flags: Beam options.

    Raises:
        ValueError: if no sample is left.
    """
    digits, limit = load_template("digits"), SampleRules(4096, "reject")
    with beam.Pipeline(options=PipelineOptions([*beam_flags])) as pipeline:
        read = pipeline | ReadTasks(resolve_patterns([tasks]))
        tokenized = read.items | TokenizeTasks(settings.model_path, digits, limit)
        rejected = (read[REJECTED], tokenized[REJECTED]) | "All rejected" >> beam.Flatten()
        _ = rejected | "Print rejected" >> beam.Map(print_rejected)
        prompts = tokenized.prompts
        plan = prompts | beam.CombineGlobally(PlanShards(samples_per_shard=64))
        blocks = prompts | AssignShards(plan) | ExtractActivations(settings, plan)
        for name in map(layer_folder, settings.sites):
            norms = blocks[name] | f"{name} norms" >> beam.FlatMap(norms_of)
            mean = norms | f"{name} mean" >> beam.combiners.Mean.Globally()
            _ = mean | f"{name} print" >> beam.Map(print_mean, name)


def norms_of(block: LayerBlock) -> list[float]:
    """Return the norm of each vector of a block."""
    norms: list[float] = np.linalg.norm(block.vectors, axis=1).tolist()
    return norms


def print_rejected(rejected: RejectedTask) -> None:
    """Print why a file, task or sample is not used."""
    print(f"rejected: {rejected.detail}", file=sys.stderr)


def print_mean(mean: float, name: str) -> None:
    """Print the mean norm of a site, which is NaN without samples."""
    if math.isnan(mean):
        raise ValueError("no sample is left")
    print(f"{name}: {mean:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks_file", required=True, help="file, folder or glob of tasks")
    ours, beam_flags = parser.parse_known_args()
    settings = ExtractorSettings("random:tiny", layers=(10, 20))
    sys.exit(until_closed(lambda: mean_norms(settings, ours.tasks_file, beam_flags)))
