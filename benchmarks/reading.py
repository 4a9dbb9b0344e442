"""Speed of reading and verifying a dataset, relative to plain reads of its files with CRC32C.

    python -m benchmarks.reading

A plain read reads the same files one after the other, in blocks of a megabyte, and computes one
CRC32C of each. All files are in the page cache. Both sides run alternately; the result is the
median of the ratios. Verifying is measured from the start to the end of the command.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from activation_dataset import ActivationDataset
from activation_dataset.checksum import extend
from activation_dataset.reading.batches import Batches
from activation_dataset.reading.vectors import Dtype
from benchmarks.paired import Pairs, run_in_turn
from benchmarks.synthetic_dataset import prompt_lengths, write_dataset

LAYERS = tuple(range(10, 24))
LAYER = 10
BATCH = 4096
VECTOR_BYTES = 2 * 896
# The start of the command counts, so that more data is verified than is read.
VERIFIED = 5


@dataclass(frozen=True)
class Result:
    """One comparison.

    Attributes:
        name: name of the comparison.
        target: smallest ratio to reach, or None.
        gigabytes: amount read by each side, or delivered by a loader.
        pairs: times of both sides.
    """

    name: str
    target: float | None
    gigabytes: float
    pairs: Pairs

    def __str__(self) -> str:
        speed = self.gigabytes / statistics.median(self.pairs.ours)
        aim = ""
        if self.target is not None:
            met = "met" if self.pairs.ratio >= self.target else "not met"
            aim = f" (target {self.target}, {met})"
        return (
            f"  {self.name}: {self.pairs.ratio:.2f}{aim}; "
            f"in processor time {self.pairs.cpu_ratio:.2f}; {speed:.2f} GB/s"
        )

    def to_json(self) -> dict[str, Any]:
        ratios = {"ratio": self.pairs.ratio, "cpu_ratio": self.pairs.cpu_ratio}
        return {"name": self.name, "target": self.target, **ratios, **asdict(self.pairs)}


def plain_reads(files: list[Path]) -> None:
    """Read the files and compute the CRC32C of each."""
    buffer = np.empty(1 << 20, np.uint8)
    for file in files:
        crc = 0
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer.data):
                crc = extend(crc, buffer[:count])


def sequential(path: Path, dtype: Dtype) -> None:
    for _ in ActivationDataset(path).blocks(LAYER, dtype=dtype):
        pass


def shuffled(batches: Batches) -> None:
    """Read an epoch."""
    for _ in batches:
        pass


def verified(path: Path) -> None:
    command = [sys.executable, "-m", "activation_dataset", "verify", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def against_plain_reads(
    name: str, target: float | None, files: list[Path], rounds: int, run: Callable[[], None]
) -> Result:
    size = sum(file.stat().st_size for file in files) / 1e9
    return Result(name, target, size, run_in_turn(run, lambda: plain_reads(files), rounds))


def every_token(folder: Path, gigabytes: float, rounds: int) -> list[Result]:
    """Compare reads of one layer of every token in bfloat16, in four shards."""
    tokens = int(gigabytes * 1e9 / 4 / VECTOR_BYTES)
    path = folder / "every-token"
    shards = [prompt_lengths(tokens, shard) for shard in range(4)]
    write_dataset(path, shards, [LAYER], "none", "bfloat16")
    files = sorted(path.glob("layer_*/*"))
    targets: tuple[tuple[Dtype, float | None, float | None], ...] = (
        ("bits", 0.8, None),
        ("float32", None, 0.5),
    )
    found = []
    for dtype, in_order, in_batches in targets:
        run = partial(sequential, path, dtype)
        found.append(against_plain_reads(f"in order, {dtype}", in_order, files, rounds, run))
        run = partial(shuffled, ActivationDataset(path).batches(LAYER, BATCH, dtype=dtype))
        found.append(against_plain_reads(f"shuffled, {dtype}", in_batches, files, rounds, run))
    return found


def verifying(folder: Path, gigabytes: float, rounds: int) -> list[Result]:
    """Compare the command on fourteen layers: every token in bfloat16, last tokens in float32."""
    tokens = int(gigabytes * 1e9 / 14 / VECTOR_BYTES / 8)
    every = [prompt_lengths(tokens, shard) for shard in range(8)]
    count = max(1, round(gigabytes * 1e9 / (14 * 512 * 896 * 4)))
    last = [np.random.default_rng(n).integers(72, 3420, 512).tolist() for n in range(count)]
    write_dataset(folder / "every token, bfloat16", every, LAYERS, "none", "bfloat16")
    write_dataset(folder / "last token, float32", last, LAYERS, "last", "float32")
    found = []
    for name in ("every token, bfloat16", "last token, float32"):
        path = folder / name
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        run = partial(verified, path)
        found.append(against_plain_reads(f"verify, {name}", 0.9, files, rounds, run))
    return found


def opening(folder: Path) -> dict[str, float]:
    """Return the seconds to open a dataset of 1,400 layer files and to read random samples."""
    path = folder / "many-files"
    write_dataset(path, [[100] * 4] * 100, LAYERS, "last", "float32")
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        ActivationDataset(path)
        seconds.append(time.perf_counter() - started)
    dataset = ActivationDataset(path)
    rng = np.random.default_rng(0)
    layers, numbers = rng.choice(LAYERS, 3000).tolist(), rng.integers(0, len(dataset), 3000)
    samples = []
    for layer, number in zip(layers, numbers.tolist(), strict=True):
        started = time.perf_counter()
        dataset.sample(layer, number).activation  # noqa: B018
        samples.append(time.perf_counter() - started)
    return {
        "open": statistics.median(seconds),
        "sample, its shard's index not yet read": statistics.median(samples[:20]),
        "sample": statistics.median(samples[1000:]),
        "sample, 99th percentile": float(np.quantile(samples[1000:], 0.99)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--gigabytes", type=float, default=0.5, help="data to read; five times as much to verify"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="temporary folder (default: /tmp)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"speed relative to plain reads with CRC32C, {arguments.gigabytes} GB, warm cache")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        results = every_token(folder, arguments.gigabytes, arguments.rounds)
        results += verifying(folder, VERIFIED * arguments.gigabytes, arguments.rounds)
        times = opening(folder)
    for result in results:
        print(result)
    print(f"  opening 1,400 files: {times['open'] * 1e3:.0f} ms (target below 1,000)")
    print(
        f"  a random sample: {times['sample'] * 1e3:.2f} ms (target below 1), 99 % within "
        f"{times['sample, 99th percentile'] * 1e3:.2f} ms"
    )
    if arguments.json:
        found = {"ratios": [result.to_json() for result in results], "seconds": times}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
