"""Time per sample and memory from 1,000 to 50,000 samples; both must stay constant.

    python -m benchmarks.growth --samples 1000 5000 50000 --svg growth.svg

Runs the whole job on short documents with `random:tiny` and the default shards and layers, in one
process of the local runner, and samples the resident memory of the process. The time is from the
first shard's files to the metadata, which excludes startup and compilation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

from activation_dataset.reporting.axes import HEIGHT, WIDTH, horizontal, vertical

ROOT = Path(__file__).parents[1]
SHARD = 512
MEGABYTE = 2**20
COLORS = ("#1f77b4", "#d95f02", "#3a923a")


@dataclass(frozen=True)
class Growth:
    """Time and memory of one run.

    Attributes:
        samples: number of samples.
        shards: number of shards.
        files: number of shard files of all layers.
        seconds: wall time from start to end.
        microseconds_per_sample: wall time per sample after the first shard.
        cpu_microseconds_per_sample: CPU time per sample, which depends less on other processes.
        start_mb: resident memory in MB after the first shard was written.
        median_mb: median of the resident memory after the first shard.
        peak_mb: maximum of the resident memory after the first shard.
        memory_mb: resident memory at about 100 evenly spaced times after the first shard.
    """

    samples: int
    shards: int
    files: int
    seconds: float
    microseconds_per_sample: float
    cpu_microseconds_per_sample: float
    start_mb: float
    median_mb: float
    peak_mb: float
    memory_mb: Sequence[float]


def write_documents(path: Path, count: int) -> None:
    """Write `count` distinct documents of 2 to 5 words."""
    with path.open("w") as stream:
        for number in range(count):
            text = " ".join(str(number * step % 9973) for step in range(1, 3 + number % 4))
            stream.write(json.dumps({"id": f"{number:07d}", "text": text}) + "\n")


def resident_mb(process: int) -> float:
    """Return the resident memory of a process; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process so far; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Sampled:
    """Time and memory of a command.

    Attributes:
        seconds: wall time in total.
        begun_seconds: wall time after the first output.
        begun_cpu_seconds: CPU time after the first output.
        memory_mb: samples of the resident memory after the first output.
    """

    seconds: float
    begun_seconds: float
    begun_cpu_seconds: float
    memory_mb: list[float]


def sampled(command: Sequence[str], is_begun: Callable[[], bool]) -> Sampled:
    """Run a command and sample its memory and CPU time 20 times per second.

    Args:
        command: program and its arguments.
        is_begun: function that returns True after the command's first output.

    Raises:
        RuntimeError: if the command fails.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    begun = begun_cpu = cpu = 0.0
    memory: list[float] = []
    while process.poll() is None:
        if not begun and is_begun():
            begun, begun_cpu = time.monotonic(), cpu_seconds(process.pid)
        if begun and (now := resident_mb(process.pid)):
            memory.append(now)
            cpu = cpu_seconds(process.pid) or cpu
        time.sleep(0.05)
    ended = time.monotonic()
    if process.returncode or not begun:
        raise RuntimeError(f"{' '.join(command)} ended with exit status {process.returncode}")
    return Sampled(ended - started, ended - begun, cpu - begun_cpu, memory)


def measure(samples: int, folder: Path, cache: Path) -> Growth:
    """Run the job on `samples` documents."""
    documents, out = folder / "documents.jsonl", folder / "out"
    write_documents(documents, samples)
    command = [
        *(sys.executable, "-m", "beam_pipeline", "--model_path", "random:tiny"),
        *("--tasks_file", str(documents), "--output_dir", str(out)),
        *("--compile_cache", str(cache)),
    ]
    first = out / "layer_23"
    found = sampled(command, lambda: any(first.glob("*.tfrecord")))
    memory, rest = found.memory_mb, max(1, samples - SHARD)
    shards = -(-samples // SHARD)
    steps = range(0, len(memory), max(1, len(memory) // 100))
    return Growth(
        samples=samples,
        shards=shards,
        files=sum(1 for _ in out.glob("layer_*/*.tfrecord")),
        seconds=found.seconds,
        microseconds_per_sample=found.begun_seconds / rest * 1e6,
        cpu_microseconds_per_sample=found.begun_cpu_seconds / rest * 1e6,
        start_mb=memory[0],
        median_mb=statistics.median(memory),
        peak_mb=max(memory),
        memory_mb=[round(memory[step], 1) for step in steps],
    )


def drawn(results: Sequence[Growth]) -> str:
    """Return an SVG document with the resident memory over the progress of each run."""
    up = vertical([mb for growth in results for mb in growth.memory_mb], zero=True)
    along = horizontal(0, 100)
    shapes = [
        f'<path d="M{along.start} {up(mb)}H{along.end}" stroke="#ddd"/>'
        f'<text x="{along.start - 6}" y="{up(mb) + 4}" text-anchor="end">{mb:g}</text>'
        for mb in up.ticks()
    ]
    shapes += [
        f'<text x="{along(share)}" y="{up.start + 16}" text-anchor="middle">{share:g}%</text>'
        for share in along.ticks()
    ]
    for place, (growth, color) in enumerate(zip(results, cycle(COLORS), strict=False)):
        last = max(1, len(growth.memory_mb) - 1)
        path = "L".join(
            f"{along(100 * number / last)} {up(mb)}" for number, mb in enumerate(growth.memory_mb)
        )
        shapes.append(
            f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.5"/>'
            f'<text x="{along.end}" y="{up.start - 12 - 16 * place}" text-anchor="end" '
            f'fill="{color}">{growth.samples:,} samples</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
        "<title>Resident memory in MB, from the first shard to the metadata</title>"
        f"{''.join(shapes)}</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000, 5_000, 50_000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path, help="file for a chart of the memory over each run")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        cache = Path(name) / "compiled"
        for number, samples in enumerate([arguments.samples[0], *arguments.samples]):
            folder = Path(name) / str(number)
            folder.mkdir()
            growth = measure(samples, folder, cache)
            if number:  # The first run fills the compile cache.
                results.append(growth)
                print(
                    f"{samples:7} samples, {growth.shards:3} shards, {growth.files:5} files: "
                    f"{growth.seconds:6.1f} s, {growth.microseconds_per_sample:6.0f} us/sample "
                    f"({growth.cpu_microseconds_per_sample:.0f} of CPU), "
                    f"{growth.start_mb:5.0f} MB at the start, {growth.peak_mb:5.0f} MB at the peak",
                    flush=True,
                )
                tenth = max(1, len(growth.memory_mb) // 10)
                print("        MB by tenths:", *growth.memory_mb[::tenth], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")
    if arguments.svg:
        arguments.svg.write_text(drawn(results))


if __name__ == "__main__":
    main()
