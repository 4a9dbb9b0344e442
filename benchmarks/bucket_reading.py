"""Speed of shuffled batches from a bucket, relative to plain parallel downloads.

    python -m benchmarks.bucket_reading --speed 50 --latency 30 --connections 8 --window 1000000

A stand-in for Cloud Storage (`benchmarks/stand_in.py`) gives each connection a speed and each
request a latency. Plain downloads fetch the same layer files whole, over as many connections, and
discard the bytes. Runs alternate; the result is the median of the ratios.
"""

from __future__ import annotations

import argparse
import http.client
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from activation_dataset import ActivationDataset
from activation_dataset.folder import RemoteFolder
from activation_dataset.index import keep_indexes
from benchmarks.paired import run_in_turn
from benchmarks.stand_in import BUCKET, Store, running
from benchmarks.synthetic_dataset import prompt_lengths, write_dataset

LAYER = 10
BATCH = 4096
VECTOR_BYTES = 2 * 896


def plain_downloads(address: str, names: Sequence[str], connections: int) -> int:
    """Download objects whole, and return their bytes."""
    host = address.removeprefix("http://")

    def download(names: Sequence[str]) -> int:
        connection, buffer, size = http.client.HTTPConnection(host), bytearray(1 << 20), 0
        for name in names:
            path = name.replace("/", "%2F")
            connection.request("GET", f"/storage/v1/b/{BUCKET}/o/{path}?alt=media")
            answer = connection.getresponse()
            while count := answer.readinto(buffer):
                size += count
        connection.close()
        return size

    with ThreadPoolExecutor(connections) as pool:
        return sum(pool.map(download, [names[n::connections] for n in range(connections)]))


def opened(connections: int) -> ActivationDataset:
    """Open the dataset in the bucket, to be read over some connections."""
    dataset = ActivationDataset(f"gs://{BUCKET}")
    assert isinstance(dataset.folder, RemoteFolder)
    dataset.folder = replace(dataset.folder, parallel_reads=connections)
    return dataset


@contextmanager
def bucket(gigabytes: float, shards: int, speed: float, latency: float) -> Iterator[str]:
    """Serve a dataset of one layer of every token in bfloat16, with its indexes."""
    tokens = int(gigabytes * 1e9 / shards / VECTOR_BYTES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lengths = [prompt_lengths(tokens, shard) for shard in range(shards)]
        write_dataset(folder / "dataset", lengths, [LAYER], "none", "bfloat16")
        dataset = ActivationDataset(folder / "dataset")
        keep_indexes(dataset.folder, dataset.metadata)
        with running(Store(speed, latency, folder / "dataset")) as address:
            yield address


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bucket_reading")
    parser.add_argument("--speed", type=float, default=50, help="MB/s of a connection")
    parser.add_argument("--latency", type=float, default=30, help="ms of a request")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--window", type=int, default=1_000_000)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--shards", type=int, default=32, help="a multiple of the connections")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args(arguments)
    with bucket(flags.gigabytes, flags.shards, flags.speed * 1e6, flags.latency / 1e3) as address:
        dataset = opened(flags.connections)
        names = [entry.files[LAYER].path for entry in dataset.metadata.shards]
        size = sum(entry.files[LAYER].bytes for entry in dataset.metadata.shards)
        batches = dataset.batches(LAYER, BATCH, window=flags.window, dtype="bits")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        def epoch() -> None:
            for _ in batches:
                pass

        pairs = run_in_turn(
            epoch, lambda: plain_downloads(address, names, flags.connections), flags.rounds
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{size / 1e6:,.0f} MB over {flags.connections} connections, windows of {flags.window:,}: "
        f"{pairs.ratio:.2f} of plain downloads"
    )
    for ours, other in zip(pairs.ours, pairs.other, strict=True):
        print(f"  {size / ours / 1e6:,.0f} MB/s, plain {size / other / 1e6:,.0f} MB/s")
    print(f"  peak memory {peak:,.0f} MiB, {before:,.0f} before the first batch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
