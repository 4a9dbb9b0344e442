"""The command line: flags in, a dataset and a summary out; a mistake is one line, not a trace.

With ``plan`` before the flags nothing is extracted: it says what the job would do.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence

from apache_beam.options.pipeline_options import WorkerOptions

from activation_dataset.format import METADATA_FILE
from activation_dataset.metadata import Metadata
from activation_dataset.reporting.summary import count_of, layers_named
from activation_dataset.sites import DEFAULT_HOOK_POINT
from beam_pipeline.options import parse_flags, parse_plan_flags
from beam_pipeline.pipeline import run_pipeline
from beam_pipeline.plan import make_plan, report
from transforms.commit_run import check_samples
from transforms.measure_output import check_output_size
from transforms.whole_file import join, read_if_exists

USER_ERROR = 2
INTERRUPTED = 130

PACKAGES = ("activation_dataset", "beam_pipeline", "corpus", "qwen", "transforms")

# As a trace prints it, after a line break that may be escaped where it came through a log.
OUR_ERROR = re.compile(rf"(?:^|\\n)(?:{'|'.join(PACKAGES)})\.[\w.]+: (.+)", re.MULTILINE)
WHERE_IT_RAN = re.compile(r" \[while running '[^']*'\]")


def main(argv: Sequence[str]) -> int:
    """Runs the job.

    Returns:
      The exit status: 0, 2 for an error that the message explains, or 130 after Ctrl-C.
    """
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
            print("interrupted; the same command goes on from what is finished", file=sys.stderr)
            return INTERRUPTED
        if (explained := explained_by(error)) is None:
            raise
        print(f"error: {explained}", file=sys.stderr)
        return USER_ERROR
    return 0


def extract(argv: Sequence[str]) -> None:
    """Runs the job, and says what was made."""
    started = time.monotonic()
    # What was imported stays, so that the collector need not look through all of it again and again
    # while Beam makes its graph.
    gc.freeze()
    config, options = parse_flags(argv)
    run_pipeline(config, options)
    content = read_if_exists(join(config.output_dir, METADATA_FILE))
    if content is not None:
        print(summary(Metadata.from_json(content), config.output_dir, time.monotonic() - started))


def plan(argv: Sequence[str]) -> None:
    """Says what the job would do, and fails where the job would be refused."""
    config, options, efficiency, prices = parse_plan_flags(argv)
    workers = options.view_as(WorkerOptions).num_workers or 1
    made = make_plan(config, workers, efficiency)
    print(report(made, config, prices))
    check_samples(made.samples, made.rejected, config.max_rejected)
    check_output_size(made.size, made.sites, config.max_output_bytes)


def explained_by(error: BaseException) -> str | None:
    """What an error of ours says, in one line; None for any other, which is a fault of ours.

    It may be the cause of another, or have been raised in another process: then a runner's error
    holds its trace as text.
    """
    for each in _with_causes(error):
        if type(each).__module__.partition(".")[0] in PACKAGES:
            return _one_line(str(each))
    found = OUR_ERROR.findall(str(error))
    return _one_line(found[-1]) if found else None


def was_interrupted(error: BaseException) -> bool:
    """Whether it was Ctrl-C, which Beam makes another error of."""
    return any(isinstance(each, KeyboardInterrupt) for each in _with_causes(error))


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__


def _one_line(message: str) -> str:
    return " ".join(WHERE_IT_RAN.sub("", message).split())


def is_news(record: logging.LogRecord) -> bool:
    """Whether a log record says anything that ``main`` does not say in its one line."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and (was_interrupted(error) or explained_by(error)):
        return False
    message = record.getMessage()
    # Beam's local worker processes say at their start that they lack what nothing here needs.
    return not OUR_ERROR.search(message) and "semi_persistent_directory" not in message


def summary(metadata: Metadata, output_dir: str, seconds: float) -> str:
    """What was made, for a person."""
    run = metadata.run
    files = sum(len(batch.files) for batch in metadata.shards)
    size = sum(entry.bytes for batch in metadata.shards for entry in batch.files.values())
    layers = layers_named(run.layers_extracted)
    at = f" at {', '.join(run.hook_points)}" if run.hook_points != (DEFAULT_HOOK_POINT,) else ""
    lines = [
        f"{output_dir}: {metadata.total_samples:,} samples, {metadata.total_tokens:,} tokens",
        f"  model    {run.model_name}" + (" (random weights)" if run.weights.get("random") else ""),
        f"  layers   {len(run.layers_extracted)} ({layers}){at}, {run.hidden_dim} wide, "
        f"pooling {run.pooling}, {run.storage_dtype}",
        f"  files    {files:,} in {count_of(len(metadata.shards), 'shard')}, {size / 1e6:,.1f} MB",
        f"  rejected {sum(metadata.rejected.values()):,}"
        + "".join(f"; {count} {reason}" for reason, count in metadata.rejected.items()),
        f"  time     {seconds:,.1f} s, {metadata.total_tokens / seconds:,.0f} tokens/s in all",
    ]
    return "\n".join(lines)
