"""The whole job against its parts: what Beam, tokenising and writing cost beside the model.

    python -m benchmarks.pipeline --tasks 32

The extractor is built and compiled beforehand and handed to the job, so that loading and compiling
are in none of the figures. Paired runs in turn; ratios are the result.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from activation_dataset.checksum import crc32c
from activation_dataset.format import Sample, to_storage
from activation_dataset.writer import LayerFileWriter
from beam_pipeline.command import extract
from benchmarks.paired import Pairs, run_in_turn
from benchmarks.prompts import TRAINING, arc_prompts
from benchmarks.synthetic_dataset import residual_stream
from qwen.extractor import ActivationExtractor
from transforms.extract_activations import ExtractorSettings

LAYERS = range(10, 24)


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@contextmanager
def tasks_file(tasks: int, folder: Path) -> Iterator[Path]:
    """A combined file of the tasks that ``arc_prompts`` takes."""
    everything = json.loads(TRAINING.read_text())
    step = max(1, len(everything) // tasks)
    chosen = dict(list(everything.items())[::step][:tasks])
    path = folder / "tasks.json"
    path.write_text(json.dumps(chosen))
    yield path


def job(extractor: ActivationExtractor, model: str, tasks: Path) -> float:
    """Seconds of the job as its command runs it, with a model that is already there."""
    with tempfile.TemporaryDirectory(dir=tasks.parent) as output:
        return seconds(lambda: extract_into(output, extractor, model, tasks))


def extract_into(output: str, extractor: ActivationExtractor, model: str, tasks: Path) -> None:
    flags = ["--model_path", model, "--tasks_file", str(tasks), "--output_dir", output]
    flags += ["--pooling", extractor.pooling]
    if extractor.pooling == "none":
        flags += ["--storage_dtype", "bfloat16"]
    built = mock.patch.object(ExtractorSettings, "build", return_value=extractor)
    with built, redirect_stdout(io.StringIO()):
        extract(flags)


def bare_loop(extractor: ActivationExtractor, prompts: Sequence[np.ndarray]) -> None:
    for _ in extractor.extract(prompts):
        pass


def writer(samples: Sequence[Sample], rows: Sequence[np.ndarray], path: Path) -> None:
    """Writes the samples as one layer file of every token."""
    with path.open("wb") as stream:
        layer = LayerFileWriter(stream, 10, "none", "bfloat16", rows[0].shape[1])
        for sample, row in zip(samples, rows, strict=True):
            layer.append([sample], row, [len(row)])
        layer.finish(0, 1)
        os.fsync(stream.fileno())


def plain_write(rows: Sequence[np.ndarray], path: Path) -> None:
    """The same bytes, in blocks, with one CRC32C each."""
    with path.open("wb") as stream:
        for row in rows:
            block = row.view(np.uint8).reshape(-1).data
            crc32c(block)
            stream.write(block)
        os.fsync(stream.fileno())


def writer_ratio(folder: Path, rounds: int) -> Pairs:
    """Speed of the writer alone over that of a plain sequential write with CRC, 0.5 GB each."""
    values = to_storage(residual_stream(32 * 1024, 896, 0), "bfloat16")
    rows = np.split(values, 32) * 9
    ids = np.arange(1024, dtype=np.int32)
    samples = [Sample(f"sample-{i}", "task", ids, 1024) for i in range(len(rows))]
    path = folder / "layer"
    return run_in_turn(lambda: writer(samples, rows, path), lambda: plain_write(rows, path), rounds)


def measure(model: str, tasks: int, rounds: int) -> dict[str, Any]:
    pooled = ActivationExtractor.load(model, LAYERS, pooling="last")
    every = ActivationExtractor.load(model, LAYERS, pooling="none", storage_dtype="bfloat16")
    prompts = arc_prompts(tasks)
    tokens = sum(map(len, prompts))
    times: dict[str, list[float]] = {"loop": [], "pooled job": [], "every-token job": []}
    with tempfile.TemporaryDirectory() as name, tasks_file(tasks, Path(name)) as path:
        folder = Path(name)
        bare_loop(pooled, prompts)
        bare_loop(every, prompts)
        for _ in range(rounds):
            times["loop"].append(seconds(lambda: bare_loop(pooled, prompts)))
            times["pooled job"].append(job(pooled, model, path))
            times["every-token job"].append(job(every, model, path))
        writing = writer_ratio(folder, rounds)

    def paired(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    return {
        "model": model,
        "tokens": tokens,
        "tokens_per_second": {k: tokens / statistics.median(v) for k, v in times.items()},
        "pooled job / loop": paired("loop", "pooled job"),
        "every-token job / pooled job": paired("pooled job", "every-token job"),
        "writer / plain write with CRC": writing.ratio,
        "the same in processor time": writing.cpu_ratio,
        "seconds": times,
    }


TARGETS = {
    "pooled job / loop": 0.95,
    "every-token job / pooled job": 0.9,
    "writer / plain write with CRC": 0.5,
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
