"""The most memory that large inputs take: it must be bounded by the settings, not by the inputs.

    python -m reliability.memory            # 300 MB of tasks, a million documents; minutes
    python -m reliability.memory --scale 0.01

Each case runs in a process of its own, at two sizes, and says the most memory that it held. Reading
and tokenising are measured by themselves, since Beam's local runner keeps in memory what passes
between its stages, which no other runner does.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from corpus.task import Document, Task
from corpus.template import load_template
from qwen.source import open_model
from reliability.job import ROOT, Job
from transforms.read_tasks import read_file
from transforms.tokenize_tasks import LengthLimit, prompts_of

LIMIT = LengthLimit(32_768, "reject")


@dataclass(frozen=True)
class Peak:
    """What a case held at most, in MB, how long it took, and how much it did."""

    megabytes: float
    seconds: float
    items: int


def peak_of(case: Callable[[Path], int], path: Path) -> Peak:
    """Runs a case in a new process."""
    receive, send = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_measure, args=(case, path, send))
    process.start()
    send.close()
    found: Peak = receive.recv()
    process.join()
    return found


def _measure(
    case: Callable[[Path], int], path: Path, send: multiprocessing.connection.Connection
) -> None:
    started = time.monotonic()
    items = case(path)
    seconds = time.monotonic() - started
    (size,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    send.send(Peak(int(size) / 1024, seconds, items))


def write_tasks(path: Path, megabytes: float) -> None:
    """One JSON object of tasks, in Kaggle's layout."""
    task = (ROOT / "examples" / "tasks" / "connect.json").read_text()
    encoded = json.dumps(json.loads(task))
    with path.open("w") as stream:
        separator = "{"
        for number in range(int(megabytes * 1e6 / len(encoded))):
            stream.write(f'{separator}"{number:08x}": {encoded}')
            separator = ", "
        stream.write("}\n")


def write_documents(path: Path, count: int) -> None:
    with path.open("w") as stream:
        for number in range(count):
            stream.write(json.dumps({"id": f"{number}", "text": f"words {number}"}) + "\n")


def read(path: Path) -> int:
    """Reads all items of a file."""
    return sum(isinstance(item, Task | Document) for item in read_file(str(path), path.name))


def read_and_tokenize(path: Path) -> int:
    """Reads and tokenises all items of a file."""
    tokenizer, template = open_model("random:tiny").tokenizer(), load_template("digits")
    return sum(
        1
        for item in read_file(str(path), path.name)
        if isinstance(item, Task | Document)
        for _ in prompts_of(item, template, tokenizer, LIMIT)
    )


def extract(path: Path) -> int:
    """Runs the job on a file, every token of 14 layers, in shards as large as it has samples."""
    from beam_pipeline.command import main

    flags = ("--pooling", "none", "--storage_dtype", "bfloat16", "--samples_per_shard", "100000")
    job = Job(path.parent / "compiled", (str(path),), flags=(*flags, "--batch_size", "1"))
    assert main(job.command(path.parent / f"{path.name}.out")[3:]) == 0
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}.out/layer_*/*"))


def write_long_document(path: Path, tokens: int) -> None:
    """A document of just so many tokens of the preset's tokenizer: each digit is one."""
    path.write_text(json.dumps({"id": "long", "text": "7" * tokens}) + "\n")


def write_long_tasks(path: Path, count: int) -> None:
    """Documents of 500 tokens."""
    with path.open("w") as stream:
        for number in range(count):
            text = f"{number:08d}" + "3" * 492
            stream.write(json.dumps({"id": f"{number}", "text": text}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the larger sizes")
    scale = parser.parse_args().scale
    cases: tuple[tuple[str, Callable[[Path, int], None], Callable[[Path], int], int, int], ...] = (
        ("read a file of tasks, MB", write_tasks, read, 3, int(300 * scale)),
        ("read documents", write_documents, read, 10_000, int(1_000_000 * scale)),
        (
            "read and tokenise documents",
            write_documents,
            read_and_tokenize,
            10_000,
            int(1_000_000 * scale),
        ),
        ("extract one prompt, tokens", write_long_document, extract, 512, 32_768),
        (
            "extract a shard, samples of 500 tokens",
            write_long_tasks,
            extract,
            64,
            int(2048 * scale) or 1,
        ),
    )
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        for label, write, case, small, large in cases:
            for size in (small, large):
                path = (
                    Path(name)
                    / f"{case.__name__}-{size}.{'json' if write is write_tasks else 'jsonl'}"
                )
                write(path, size)
                peak = peak_of(case, path)
                print(
                    f"{label}: {size:9,}: {peak.megabytes:6.0f} MB at most, {peak.seconds:6.1f} s, "
                    f"{peak.items:,}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
