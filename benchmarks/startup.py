"""Seconds from a fresh process to the first activation, with a cold and a warm compile cache.

python -m benchmarks.startup --model random:tiny
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.prompts import arc_prompts


def first_activation(connection: Connection, model: str, cache: str) -> None:
    """Start up in a new process and send the seconds.

    Sends the seconds to import, and the seconds from the import to the loaded model and to the
    first activation.
    """
    prompts = arc_prompts(8)
    started = time.perf_counter()
    from qwen.batching import SampleTokens
    from qwen.extractor import open_extractor
    from qwen.settings import ExtractorSettings

    imported = time.perf_counter()
    settings = ExtractorSettings(model, tuple(range(10, 24)), compile_cache=cache)
    extractor = open_extractor(
        settings, samples_to_come=[SampleTokens(prompt) for prompt in prompts]
    )
    loaded = time.perf_counter()
    next(extractor.extract(prompts))
    ended = time.perf_counter()
    connection.send((imported - started, loaded - imported, ended - imported))


def measure(model: str, cache: str) -> tuple[float, float, float]:
    """Return the seconds that `first_activation` sends."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=first_activation, args=(there, model, cache))
    process.start()
    result: tuple[float, float, float] = here.recv()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="random:tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runs = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            runs.append((measure(arguments.model, cache), measure(arguments.model, cache)))
    ratio = statistics.median(warm[-1] / cold[-1] for cold, warm in runs)
    for run in runs:
        for name, (imports, load, first) in zip(("cold", "warm"), run, strict=True):
            print(
                f"  {name}: import {imports:.1f} s; after the import, model loaded in "
                f"{load:.1f} s, first activation in {first:.1f} s"
            )
    print(f"  warm / cold: {ratio:.2f} (target below 0.33)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": runs, "ratio": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    main()
