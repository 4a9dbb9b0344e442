"""Overhead of the job relative to the model alone, and the speed of the writer alone.

    python -m benchmarks.pipeline --tasks 32

The overhead includes Beam, tokenization and writing. The job receives an extractor that is already
compiled, so the figures exclude loading and compilation. Runs alternate; the results are ratios of
paired runs.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from activation_dataset.prompts import Prompt
from activation_dataset.record import RecordKind, frame_record
from activation_dataset.statistics import LayerStatistics
from activation_dataset.writer import LayerFileWriter
from beam_pipeline.command import extract
from benchmarks.prompts import TRAINING, arc_prompts
from benchmarks.synthetic_dataset import in_storage, residual_stream
from qwen.extractor import ActivationExtractor

LAYERS = range(10, 24)
HIDDEN = 896

SAMPLES_PER_STEP, TOKENS_PER_SAMPLE = 4, 1024
WRITER_STEPS = 72
"""Number of steps of 4,096 vectors in the measurement of the writer: 0.5 GB in bfloat16."""


def seconds(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def write_tasks(tasks: int, path: Path) -> None:
    """Write a combined file of the tasks that `arc_prompts` selects."""
    everything = json.loads(TRAINING.read_text())
    step = max(1, len(everything) // tasks)
    path.write_text(json.dumps(dict(list(everything.items())[::step][:tasks])))


def job(extractor: ActivationExtractor, model: str, tasks: Path) -> float:
    """Return the seconds that the job takes with a model that is already loaded."""
    flags = ["--model_path", model, "--tasks_file", str(tasks), "--no_progress"]
    flags += ["--pooling", extractor.settings.pooling]
    flags += ["--storage_dtype", extractor.settings.storage_dtype]
    opened = mock.patch("qwen.extractor.open_extractor", return_value=extractor)
    out = tempfile.TemporaryDirectory(dir=tasks.parent)
    with out as folder, opened, redirect_stdout(io.StringIO()):
        return seconds(lambda: extract([*flags, "--output_dir", folder]))


def bare_loop(extractor: ActivationExtractor, prompts: Sequence[np.ndarray]) -> None:
    """Run the model over the prompts without writing."""
    for _ in extractor.extract(prompts):
        pass


class NullStream(io.RawIOBase):
    """A stream that discards every byte."""

    def write(self, data: Any) -> int:
        return memoryview(data).nbytes


def writer_speed() -> float:
    """Return the speed in GB/s of one thread that writes every token in bfloat16, step by step.

    Each step includes its statistics, as from a device; the writer merges them.
    """
    kind = RecordKind("none", "bfloat16", HIDDEN)
    rows = residual_stream(SAMPLES_PER_STEP * TOKENS_PER_SAMPLE, HIDDEN, seed=0)
    vectors = in_storage(rows, "bfloat16")
    step_statistics = LayerStatistics.of_vectors(vectors)
    ids = np.arange(TOKENS_PER_SAMPLE, dtype=np.int32)
    cells = np.full((TOKENS_PER_SAMPLE, 4), -1, np.int16)
    steps = [
        [
            frame_record(kind.sample(Prompt(f"{step}/{sample}", "task", ids, cells)), kind)
            for sample in range(SAMPLES_PER_STEP)
        ]
        for step in range(WRITER_STEPS)
    ]

    def write() -> None:
        writer = LayerFileWriter(NullStream(), 10, kind)  # type: ignore[arg-type]
        for frames in steps:
            writer.append(frames, vectors, step_statistics)
        writer.finish(0, 1, "xla")

    write()
    return WRITER_STEPS * vectors.nbytes / seconds(write) / 1e9


def measure(model: str, tasks: int, rounds: int) -> dict[str, Any]:
    """Measure the job relative to the bare loop, every token relative to pooled, and the writer."""
    pooled = ActivationExtractor.load(model, LAYERS, pooling="last")
    every = ActivationExtractor.load(model, LAYERS, pooling="none", storage_dtype="bfloat16")
    prompts = arc_prompts(tasks)
    tokens = sum(map(len, prompts))
    times: dict[str, list[float]] = {"loop": [], "pooled job": [], "every-token job": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.json"
        write_tasks(tasks, path)
        bare_loop(pooled, prompts)
        bare_loop(every, prompts)
        for _ in range(rounds):
            times["loop"].append(seconds(lambda: bare_loop(pooled, prompts)))
            times["pooled job"].append(job(pooled, model, path))
            times["every-token job"].append(job(every, model, path))

    def speed_ratio(one: str, other: str) -> float:
        return statistics.median(b / a for a, b in zip(times[one], times[other], strict=True))

    return {
        "model": model,
        "tokens": tokens,
        "tokens_per_second": {k: tokens / statistics.median(v) for k, v in times.items()},
        "pooled job / loop": speed_ratio("pooled job", "loop"),
        "every-token job / pooled job": speed_ratio("every-token job", "pooled job"),
        "writer, GB/s": statistics.median(writer_speed() for _ in range(rounds)),
        "seconds": times,
    }


TARGETS = {
    "pooled job / loop": 0.97,
    "every-token job / pooled job": 0.95,
    "writer, GB/s": 5.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="random:Qwen2.5-0.5B")
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.model, arguments.tasks, arguments.rounds)
    print(f"{result['tokens']} tokens, {arguments.model}")
    for name, speed in result["tokens_per_second"].items():
        print(f"  {name:16} {speed:8.0f} tokens/s")
    for name, target in TARGETS.items():
        met = "met" if result[name] >= target else "not met"
        print(f"  {name}: {result[name]:.2f} (target {target}, {met})")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
