"""Command line of the job. A user error is one line without a traceback.

With `plan` before the flags, the command predicts what the job would do and extracts nothing.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Sequence

from apache_beam.options.pipeline_options import WorkerOptions

from activation_dataset.format import METADATA_FILE
from activation_dataset.metadata import Metadata
from activation_dataset.reporting.summary import count_of, inputs, widths_named
from activation_dataset.sites import DEFAULT_HOOK_POINT, layers_named
from beam_pipeline.accelerators import runs_on_dataflow
from beam_pipeline.failures import explained_by, is_news, was_interrupted
from beam_pipeline.flags import build_plan_parser
from beam_pipeline.job import open_job
from beam_pipeline.options import parse_flags
from beam_pipeline.pipeline import run_pipeline
from beam_pipeline.plan import make_plan, report
from transforms.commit_run import check_output_dir, check_samples, read_run
from transforms.measure_output import check_output_size
from transforms.storage import join, read_if_exists

LOGGER = logging.getLogger(__name__)

USER_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status: 0, 2 after a one-line error, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(is_news)
    try:
        if argv[:1] == ["plan"]:
            plan(argv[1:])
        else:
            extract(argv)
    except BaseException as error:
        if was_interrupted(error):
            print("interrupted; the same command resumes from the finished files", file=sys.stderr)
            return INTERRUPTED
        if (explained := explained_by(error)) is None:
            raise
        LOGGER.debug("the full error", exc_info=error)
        print(f"error: {explained}", file=sys.stderr)
        return USER_ERROR
    return 0


def extract(argv: Sequence[str]) -> None:
    """Run the job, and print a summary of the dataset."""
    started = time.monotonic()
    # The garbage collector need not rescan imported modules while Beam builds its graph.
    gc.freeze()
    config, options = parse_flags(argv)
    if config.accelerator and not runs_on_dataflow(options):
        LOGGER.warning(
            "--accelerator=%s describes workers of Dataflow; without --runner=DataflowRunner, the "
            "model runs on the devices that JAX finds",
            config.accelerator,
        )
    if options.view_as(WorkerOptions).default_sdk_harness_log_level == "DEBUG":
        # Shows the traceback of errors that are explained in one line.
        LOGGER.setLevel(logging.DEBUG)
    resumed = run_pipeline(config, options)
    content = read_if_exists(join(config.output_dir, METADATA_FILE))
    if content is not None:
        seconds = time.monotonic() - started
        print(summary(Metadata.from_json(content), config.output_dir, seconds, resumed))


def plan(argv: Sequence[str]) -> None:
    """Print what the job would do, and fail if the job would be refused.

    The contents of weights files are read only if the output folder has a run to compare them with.
    """
    job = open_job(parse_flags(argv, build_plan_parser())[0])
    config, run = job.config, None
    if not config.overwrite and read_run(config.output_dir) is not None:
        run = job.describe()
    elif job.source.files.commit() is None:  # The weights of a hub model would be downloaded.
        job.source.check_weights()
    made = make_plan(job)
    print(report(made, config, config.workers))
    if run is not None:
        check_output_dir(config.output_dir, run, made.shards)
    check_output_size(made.size, len(config.extractor.sites), config.max_output_bytes)
    check_samples(made.shards.samples, made.rejected, config.max_rejected, tokens=config.tokens)


def summary(metadata: Metadata, output_dir: str, seconds: float, resumed: int | None = None) -> str:
    """Return the summary of a finished run.

    Args:
        metadata: metadata of the dataset.
        output_dir: folder of the dataset.
        seconds: duration of the run.
        resumed: number of data files that an earlier run left; None if there was none.
    """
    run = metadata.run
    files = [entry for shard in metadata.shards for entry in shard.all_files]
    megabytes = sum(entry.bytes for entry in files) / 1e6
    layers = layers_named(run.layers_extracted)
    at = f" at {', '.join(run.hook_points)}" if run.hook_points != (DEFAULT_HOOK_POINT,) else ""
    # The number of new tokens of a resumed run is unknown here.
    rate = f"{metadata.total_tokens / seconds:,.0f} tokens/s overall"
    if resumed is not None:
        rate = f"after an earlier run, which left {count_of(resumed, 'file')}"
    lines = [
        f"{output_dir}: {count_of(metadata.total_samples, 'sample')}, "
        f"{count_of(metadata.total_tokens, 'token')}",
        f"  model    {run.model_name}"
        + (" (random weights)" if run.weights.get("random") else "")
        + f", computed in {run.compute_dtype}",
        f"  layers   {len(run.layers_extracted)} ({layers}){at}, {widths_named(run)}, "
        f"pooling {run.pooling}, {run.storage_dtype}",
        *(
            [
                f"  ops      {', '.join(metadata.ops)}: workers of different kinds, which round "
                "differently, computed the files"
            ]
            if len(metadata.ops) > 1
            else []
        ),
        f"  files    {len(files):,} in {count_of(len(metadata.shards), 'shard')}, "
        f"{megabytes:,.1f} MB",
        *(f"  {name:<8} {value}; {note}" for name, value, note in inputs(metadata)),
        f"  time     {seconds:,.1f} s, {rate}",
    ]
    return "\n".join(lines)
