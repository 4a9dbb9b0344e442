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
    """In a process of its own: sends the seconds to load the model, and to the first activation."""
    prompts = arc_prompts(8)
    started = time.perf_counter()
    from qwen2.compile_cache import use_compile_cache
    from qwen2.extractor import ActivationExtractor

    use_compile_cache(cache)
    extractor = ActivationExtractor.load(model, range(10, 24))
    loaded = time.perf_counter()
    next(extractor.extract(prompts))
    connection.send((loaded - started, time.perf_counter() - loaded))


def measure(model: str, cache: str) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=first_activation, args=(there, model, cache))
    process.start()
    result: tuple[float, float] = here.recv()
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
    ratio = statistics.median(warm[1] / cold[1] for cold, warm in runs)
    for cold, warm in runs:
        print(
            f"  load {cold[0]:.1f} s; first activation after it: cold {cold[1]:.1f} s, "
            f"warm {warm[1]:.1f} s"
        )
    print(f"  warm / cold: {ratio:.2f} (target below 0.33)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": runs, "ratio": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    main()
