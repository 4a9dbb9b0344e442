"""The command line: flags in, a dataset and a summary out; a mistake is one line, not a trace."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

from activation_dataset.format import METADATA_FILE
from activation_dataset.metadata import Metadata
from beam_pipeline.options import parse_flags
from beam_pipeline.pipeline import run_pipeline
from transforms.whole_file import join, read_if_exists

USER_ERROR = 2


def main(argv: Sequence[str]) -> int:
    """Runs the job.

    Returns:
      The exit status: 0, or 2 for an error that the message explains.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    started = time.monotonic()
    try:
        config, options = parse_flags(argv)
        run_pipeline(config, options)
        content = read_if_exists(join(config.output_dir, METADATA_FILE))
    except Exception as error:
        if (explained := explained_by(error)) is None:
            raise
        print(f"error: {explained}", file=sys.stderr)
        return USER_ERROR
    if content is not None:
        print(summary(Metadata.from_json(content), config.output_dir, time.monotonic() - started))
    return 0


def explained_by(error: BaseException) -> str | None:
    """The message of the first error of ours in a chain; Beam wraps those of its workers.

    Ours are the subclasses of ValueError, RuntimeError and OSError that these packages define.
    """
    packages = ("activation_dataset", "beam_pipeline", "corpus", "qwen2", "transforms")
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if type(current).__module__.partition(".")[0] in packages:
            return str(current)
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return None


def summary(metadata: Metadata, output_dir: str, seconds: float) -> str:
    """What was made, for a person."""
    run = metadata.run
    files = sum(len(batch.files) for batch in metadata.batches)
    size = sum(entry.bytes for batch in metadata.batches for entry in batch.files.values())
    layers = f"{run.layers_extracted[0]} to {run.layers_extracted[-1]}"
    lines = [
        f"{output_dir}: {metadata.total_samples:,} samples, {metadata.total_tokens:,} tokens",
        f"  model    {run.model_name}" + (" (random weights)" if run.weights["random"] else ""),
        f"  layers   {len(run.layers_extracted)} ({layers}), {run.hidden_dim} wide, "
        f"pooling {run.pooling}, {run.storage_dtype}",
        f"  files    {files:,} in {len(metadata.batches):,} shards, {size / 1e6:,.1f} MB",
        f"  rejected {sum(metadata.rejected.values()):,}"
        + "".join(f"; {count} {reason}" for reason, count in metadata.rejected.items()),
        f"  time     {seconds:,.1f} s, {metadata.total_tokens / seconds:,.0f} tokens/s in all",
    ]
    return "\n".join(lines)
