"""Time of writing to a bucket, relative to the capacity of its connections.

    python -m benchmarks.bucket --speed 50 --latency 30 --layers 14 --megabytes 1500

A stand-in for Cloud Storage (`benchmarks/stand_in.py`) gives each connection a speed and each
request a latency. A fake extractor makes blocks of all layers at a given speed and passes them to
the writers of the job. The result is the time divided by max(extractor time, bytes / (connections
x speed)), where each layer has one connection.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from activation_dataset.prompts import Prompt
from activation_dataset.record import RecordKind, frame_record
from activation_dataset.statistics import LayerStatistics
from benchmarks.stand_in import Store, running
from transforms.extract_activations import LayerBlock
from transforms.output_folder import OutputFolder
from transforms.write_layer import _WriteLayer

HIDDEN = 896
VECTORS = 4096


def write(layers: int, total: float, made: float) -> tuple[float, int]:
    """Return the seconds and the bytes of a shard that an extractor makes at some bytes/s."""
    kind = RecordKind("none", "float32", HIDDEN)
    ids = np.arange(VECTORS, dtype=np.int32)
    vectors = np.zeros((VECTORS, HIDDEN), np.float32)
    vectors[:] = np.arange(HIDDEN)
    statistics = LayerStatistics.of_vectors(vectors)
    folder = OutputFolder.claim("gs://bucket/out")
    writers = {layer: _WriteLayer(folder, layer, kind) for layer in range(layers)}
    for writer in writers.values():
        writer.setup()
        writer.start_bundle()
    steps = max(1, round(total / layers / vectors.nbytes))
    start, given = time.monotonic(), 0
    for step in range(steps):
        frame = frame_record(kind.sample(prompt_of(step, ids)), kind)
        for layer, writer in writers.items():
            given += vectors.nbytes
            time.sleep(max(0, start + given / made - time.monotonic()))
            last = step == steps - 1
            block = LayerBlock(0, 1, layer, (frame,), vectors, statistics, "fake", last)
            writer.process(block)
    for writer in writers.values():
        list(writer.finish_bundle())
        writer.teardown()
    return time.monotonic() - start, given


def prompt_of(number: int, ids: np.ndarray) -> Prompt:
    """Return a prompt of these tokens."""
    return Prompt(f"sample-{number:06}", "", ids, np.full((len(ids), 4), -1, np.int16))


def main() -> None:
    """Measure and print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speed", type=float, default=50, help="MB/s of a connection")
    parser.add_argument("--latency", type=float, default=30, help="ms of a request")
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--megabytes", type=float, default=1500)
    parser.add_argument("--extractor", type=float, default=2000, help="MB/s of the extractor")
    flags = parser.parse_args()
    with running(Store(flags.speed * 1e6, flags.latency / 1e3)):
        seconds, size = write(flags.layers, flags.megabytes * 1e6, flags.extractor * 1e6)
    bound = max(
        size / (flags.extractor * 1e6),
        size / (flags.layers * flags.speed * 1e6),
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{size / 1e6:,.0f} MB in {seconds:.2f} s, {seconds / bound:.2f} times the bound of "
        f"{bound:.2f} s; peak memory {peak:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
