"""The graph of the job, and how it is started."""

from __future__ import annotations

import sys

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from activation_dataset.format import layer_folder
from beam_pipeline.config import Config, ConfigError, Run, resolve
from beam_pipeline.lost_worker import ends_with_its_workers
from beam_pipeline.progress import shown
from corpus.template import load_template
from qwen.source import open_model
from transforms.assign_shards import AssignShards, PlanShards
from transforms.combine_metadata import CombineMetadata
from transforms.commit_run import CommitRun, Limits, check_output_dir
from transforms.extract_activations import FINISHED, PROMPTS, ExtractActivations
from transforms.measure_output import SumSizes
from transforms.output_folder import OutputFolder, remove_output, remove_partial_files
from transforms.read_tasks import INPUTS, REJECTED, ReadTasks, resolve_patterns
from transforms.tokenize_tasks import TokenizeTasks
from transforms.write_layer import WriteLayer
from transforms.write_prompts import WritePrompts
from transforms.write_rejected import count_reasons


def prepare(config: Config) -> Run:
    """Opens the model and finds the inputs, so that what is wrong is said before a job starts.

    Raises:
      ValueError: of several kinds, each naming the flag or file and what to do.
    """
    patterns = resolve_patterns(config.tasks_file)
    template = load_template(config.prompt_template)
    source = open_model(config.model_path)
    source.tokenizer()
    source.check_weights()
    return resolve(config, source, template, patterns)


def build(pipeline: beam.Pipeline, run: Run, folder: OutputFolder) -> beam.PCollection:
    """Adds the whole job to a pipeline; gives the ``Metadata`` that it ends with."""
    config = run.config
    read = pipeline | "ReadTasks" >> ReadTasks(run.patterns)
    tokenized = read.items | "Tokenize" >> TokenizeTasks(
        config.model_path, run.template, run.limit, run.augmentation
    )
    rejected = (
        (read[REJECTED], tokenized[REJECTED])
        | "Rejected" >> beam.Flatten()
        | "GatherRejected" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
    )
    plan = (
        tokenized.prompts
        | "PlanShards" >> beam.CombineGlobally(PlanShards(config.samples_per_shard))
        | "CommitRun"
        >> CommitRun(
            folder,
            run.description,
            Limits(config.max_rejected, config.max_output_bytes),
            rejected,
            tokenized.prompts | "MeasureOutput" >> beam.CombineGlobally(SumSizes(run.record_kind)),
        )
    )
    extracted = (
        tokenized.prompts
        | "AssignShards" >> AssignShards(plan)
        | "Extract"
        >> ExtractActivations(run.extractor, folder.path, run.description.hidden_dim, plan)
    )
    written = [
        extracted[layer_folder(site)]
        | layer_folder(site)
        >> WriteLayer(
            folder,
            site,
            run.description.hidden_dim,
            config.pooling,
            config.storage_dtype,
        )
        for site in run.description.sites
    ]
    prompts = extracted[PROMPTS] | "prompts" >> WritePrompts(folder)
    return (
        [*written, prompts, extracted[FINISHED]]
        | "Manifests" >> beam.Flatten()
        | "CombineMetadata"
        >> CombineMetadata(
            folder,
            run.description,
            config.allow_nonfinite,
            plan,
            read[INPUTS],
            rejected | "CountReasons" >> beam.Map(count_reasons),
        )
    )


def run_pipeline(config: Config, options: PipelineOptions) -> Run:
    """Runs the job to its end, or submits it where the runner does not wait.

    Raises:
      ConfigError: if Beam's flags do not go together.
      WorkerLostError: if a local worker process died.
    """
    try:
        pipeline = beam.Pipeline(options=options)
    except ValueError as error:
        raise ConfigError(f"Beam refuses its flags: {error}") from error
    run = prepare(config)
    if not config.overwrite:
        check_output_dir(config.output_dir, run.description)
    folder = OutputFolder.claim(config.output_dir)
    if config.overwrite:
        remove_output(folder.path)
    remove_partial_files(folder.path)
    bar = shown(options, config.output_dir, config.progress, sys.stderr)
    with bar, ends_with_its_workers(), pipeline:
        build(pipeline, run, folder)
    return run
