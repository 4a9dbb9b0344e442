"""Graph of the job, and its run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.combiners import TupleCombineFn

from activation_dataset.format import layer_folder, parse_data_file
from activation_dataset.metadata import RunDescription
from beam_pipeline.config import Config, ConfigError
from beam_pipeline.credentials import check_credentials
from beam_pipeline.failures import was_refused
from beam_pipeline.job import Job, open_job
from beam_pipeline.job_service import wait_for_job_service
from beam_pipeline.lost_worker import ends_with_its_workers
from beam_pipeline.progress import progress_bar
from transforms.assign_shards import AssignShards, PlanShards
from transforms.combine_metadata import CombineMetadata
from transforms.commit_run import CommitRun, Limits, check_output_dir
from transforms.extract_activations import FINISHED, PROMPTS, ExtractActivations
from transforms.find_duplicates import FindDuplicates
from transforms.measure_output import SumSizes
from transforms.output_folder import OutputFolder, remove_output, remove_partial_files
from transforms.read_tasks import INPUTS, NOTICES, REJECTED, SKIPPED, ReadTasks
from transforms.report_inputs import GatherReport
from transforms.resume import ops_of_files
from transforms.tokenize_tasks import WRITTEN, TokenizeTasks
from transforms.write_layer import WriteLayer
from transforms.write_prompts import WritePrompts


def build(
    pipeline: beam.Pipeline,
    job: Job,
    run: RunDescription,
    folder: OutputFolder,
    finished_ops: tuple[str, ...] = (),
) -> beam.PCollection:
    """Add the whole job to a pipeline, and return the PCollection of its one `Metadata`.

    Args:
        pipeline: empty pipeline.
        job: result of `open_job`.
        run: result of `job.describe()`.
        folder: claimed output folder.
        finished_ops: result of `ops_of_files` for existing files.
    """
    config, kinds = job.config, job.record_kinds
    extractor = replace(
        config.extractor,
        expected_config=job.source.config,
        weights_fingerprint=str(run.weights["fingerprint"]),
        expected_versions=tuple(run.versions.items()),
        expected_ops=finished_ops,
    )

    tasks = pipeline | "ReadTasks" >> ReadTasks(job.patterns, config.text_field)
    tokenized = tasks.items | "Tokenize" >> TokenizeTasks(
        extractor.model_path,
        job.template,
        job.rules,
        config.augmentation,
        extractor.ignore_config,
        str(run.tokenizer["fingerprint"]),
    )
    prompts = tokenized.prompts
    report = (
        [
            *(tasks[tag] for tag in (REJECTED, NOTICES, INPUTS, SKIPPED)),
            *(tokenized[tag] for tag in (REJECTED, WRITTEN)),
            tasks.items | "FindDuplicates" >> FindDuplicates(),
        ]
        | "Reported" >> beam.Flatten()
        | "GatherReport" >> beam.CombineGlobally(GatherReport())
    )
    planned = TupleCombineFn(
        PlanShards(job.samples_per_shard), SumSizes(Counter(kinds.values()))
    ).with_common_input()
    plan = (
        prompts
        | "PlanShards" >> beam.CombineGlobally(planned)
        | "CommitRun"
        >> CommitRun(folder, run, Limits(config.max_rejected, config.max_output_bytes), report)
    )

    extracted = (
        prompts
        | "AssignShards" >> AssignShards(plan)
        | "Extract" >> ExtractActivations(extractor, plan, folder.path)
    )
    layers = [
        extracted[layer_folder(site)]
        | layer_folder(site) >> WriteLayer(folder, site, kind, config.upload_memory)
        for site, kind in kinds.items()
    ]
    written_prompts = extracted[PROMPTS] | "prompts" >> WritePrompts(folder)

    return (
        [*layers, written_prompts, extracted[FINISHED]]
        | "Manifests" >> beam.Flatten()
        | "CombineMetadata" >> CombineMetadata(folder, run, config.allow_nonfinite, plan, report)
    )


def run_pipeline(config: Config, options: PipelineOptions) -> int | None:
    """Run the job to its end, or submit it if the runner does not wait.

    Returns:
        Number of data files that an earlier run left, which are not computed again if they are
        valid; None if this run does not resume another.

    Raises:
        ConfigError: if Beam's flags contradict each other, name an engine that does not answer, or
            need credentials that are missing.
        ValueError: of several kinds, each naming the flag or file and what to do.
    """
    check_credentials(options)
    try:
        pipeline = beam.Pipeline(options=options)
    except ValueError as error:
        raise ConfigError(f"Beam refuses its flags: {error}") from error
    job = open_job(config)
    run = job.describe()
    wait_for_job_service(options)
    resumes = not config.overwrite and check_output_dir(config.output_dir, run)
    folder = OutputFolder.claim(config.output_dir)
    if config.overwrite:
        remove_output(folder.path)
    existing = remove_partial_files(folder.path)
    finished_ops = ops_of_files(folder.path, existing)
    try:
        with progress_bar(options, not config.no_progress), ends_with_its_workers(), pipeline:
            build(pipeline, job, run, folder, finished_ops)
    except Exception as error:
        # After other failures, workers may still write until another run takes the claim.
        if was_refused(error):
            folder.release()
        raise
    return sum(parse_data_file(name) is not None for name in existing) if resumes else None
