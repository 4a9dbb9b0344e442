"""Peak memory over large inputs, which the settings must bound whatever the size of the inputs.

    python -m reliability.memory            # 300 MB of tasks, 1.5 GB of texts; minutes
    python -m reliability.memory --scale 0.01

Each case runs at two sizes, each in its own process. Reading and tokenizing are measured without
the job, because Beam's local runner keeps all elements between its stages in memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from corpus.task import Document, Task
from corpus.template import load_template
from qwen.source import open_model
from reliability.job import ROOT, Job
from transforms.read_tasks import read_file
from transforms.split_file import BLOCK_BYTES, Block, split_file
from transforms.tokenize_tasks import SampleRules, prompts_of

LIMIT = SampleRules(32_768, "reject")


@dataclass(frozen=True)
class Peak:
    """Peak memory of a case in MB, its time in seconds, and its number of items."""

    megabytes: float
    seconds: float
    items: int


def peak_of(case: Callable[[Path], int], path: Path) -> Peak:
    """Run a case in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, case, path).result()


def _measure(case: Callable[[Path], int], path: Path) -> Peak:
    started = time.monotonic()
    items = case(path)
    (size,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return Peak(int(size) / 1024, time.monotonic() - started, items)


def write_tasks(path: Path, megabytes: float) -> None:
    """Write one JSON object of tasks, in Kaggle's layout."""
    task = (ROOT / "examples" / "tasks" / "connect.json").read_text()
    encoded = json.dumps(json.loads(task))
    with path.open("w") as stream:
        separator = "{"
        for number in range(int(megabytes * 1e6 / len(encoded))):
            stream.write(f'{separator}"{number:08x}": {encoded}')
            separator = ", "
        stream.write("}\n")


def write_documents(path: Path, count: int) -> None:
    """Write short documents."""
    with path.open("w") as stream:
        for number in range(count):
            stream.write(json.dumps({"id": f"{number}", "text": f"words {number}"}) + "\n")


def write_texts(path: Path, megabytes: int) -> None:
    """Write documents of 2 kB."""
    text = "words of a text, " * 120
    with path.open("w") as stream:
        for number in range(megabytes * 1_000_000 // len(text)):
            stream.write(json.dumps({"id": f"{number}", "text": f"{number} {text}"}) + "\n")


def split(path: Path) -> int:
    """Find the blocks of a file and return their number."""
    found = split_file(str(path), path.name, None, BLOCK_BYTES)
    return sum(isinstance(each, Block) for each in found)


def read(path: Path) -> int:
    """Read all items of a file and return their number."""
    return sum(isinstance(item, Task | Document) for item in read_file(str(path), path.name))


def read_and_tokenize(path: Path) -> int:
    """Read and tokenize all items of a file and return the number of prompts."""
    tokenizer, template = open_model("random:tiny").tokenizer(), load_template("digits")
    return sum(
        1
        for item in read_file(str(path), path.name)
        if isinstance(item, Task | Document)
        for _ in prompts_of(item, template, tokenizer, LIMIT)
    )


def extract(path: Path) -> int:
    """Extract every token of 14 layers from a file, in one shard, and return the bytes."""
    from beam_pipeline.command import main

    flags = ("--pooling", "none", "--storage_dtype", "bfloat16", "--samples_per_shard", "100000")
    job = Job(path.parent / "compiled", (str(path),), flags=(*flags, "--batch_size", "1"))
    assert main(job.arguments(path.parent / f"{path.name}.out")) == 0
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}.out/layer_*/*"))


def write_long_document(path: Path, tokens: int) -> None:
    """Write one document; the preset's tokenizer makes each of its digits a token."""
    path.write_text(json.dumps({"id": "long", "text": "7" * tokens}) + "\n")


def write_long_documents(path: Path, count: int) -> None:
    """Write documents of 500 tokens."""
    with path.open("w") as stream:
        for number in range(count):
            text = f"{number:08d}" + "3" * 492
            stream.write(json.dumps({"id": f"{number}", "text": text}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="scale of the larger sizes")
    scale = parser.parse_args().scale
    many = int(1_000_000 * scale)
    cases: tuple[tuple[Callable[[Path, int], None], Callable[[Path], int], int, int], ...] = (
        (write_tasks, read, 3, int(300 * scale)),
        (write_documents, read, 10_000, many),
        (write_documents, read_and_tokenize, 10_000, many),
        (write_texts, split, 150, max(150, int(1500 * scale))),
        (write_long_document, extract, 512, 32_768),
        (write_long_documents, extract, 64, max(1, int(2048 * scale))),
    )
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        for write, case, *sizes in cases:
            for size in sizes:
                suffix = "json" if write is write_tasks else "jsonl"
                path = Path(name) / f"{case.__name__}-{size}.{suffix}"
                write(path, size)
                peak = peak_of(case, path)
                label = f"{case.__name__} after {write.__name__}"
                took = f"{peak.megabytes:6.0f} MB at most, {peak.seconds:6.1f} s"
                print(f"{label} {size:9,}: {took}, {peak.items:,}", flush=True)


if __name__ == "__main__":
    main()
