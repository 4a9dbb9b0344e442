"""The job as a user starts it, in its own process group, so that a test can kill all of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from activation_dataset.format import is_partial_file

ROOT = Path(__file__).parents[1]
TASKS = tuple(
    str(ROOT / "examples" / "tasks" / f"{name}.json") for name in ("fall", "mirror", "tile", "turn")
)
"""Four tasks with five test inputs of at most 512 tokens each."""

TWO_WORKERS = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")

MANY_FILES = (
    *("--layers_to_extract", "all", "--pooling", "none", "--storage_dtype", "bfloat16"),
    *("--samples_per_shard", "1", "--batch_size", "1"),
)
"""One shard for each of the five prompts, in 24 layers: 125 data files of 3.6 MB in total."""


@dataclass(frozen=True)
class Job:
    """Command line of the job without its output folder.

    Attributes:
        cache: folder of compiled programs, warm after the first run.
        tasks: task files.
        model: value of `--model_path`.
        flags: all other flags.
    """

    cache: Path
    tasks: Sequence[str] = TASKS
    model: str = "random:tiny"
    flags: Sequence[str] = MANY_FILES

    def arguments(self, out: Path) -> list[str]:
        """Return the arguments of `python -m beam_pipeline`."""
        return [
            *("--model_path", self.model, "--tasks_file", *self.tasks),
            *("--output_dir", str(out), "--compile_cache", str(self.cache), *self.flags),
        ]

    def start(self, out: Path, *more: str) -> subprocess.Popen[str]:
        """Start the job in a new session and capture its output."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COM")}
        return subprocess.Popen(
            [sys.executable, "-m", "beam_pipeline", *self.arguments(out), *more],
            cwd=ROOT,
            env={**kept, "JAX_PLATFORMS": "cpu", "NO_GCE_CHECK": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, out: Path, *more: str) -> tuple[int, str]:
        """Run the job to its end, and return its exit status and its stderr."""
        return ended(self.start(out, *more))

    def complete(self, out: Path, *more: str) -> None:
        """Run the job, which must complete the dataset."""
        status, errors = self.run(out, *more)
        assert status == 0, f"exit status {status}: {errors}"


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a job, and return its exit status and its stderr."""
    _, errors = process.communicate()
    return process.returncode, errors


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by path."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[path.relative_to(out).as_posix()] = digest
    return found


def broken(out: Path, expected: Mapping[str, str]) -> list[str]:
    """Return the names of files that an interrupted run must not leave behind.

    Without metadata.json, files may be missing and partial files may be left. All other files must
    match an undisturbed run, whose digests are `expected`.
    """
    found = digests(out)
    if "metadata.json" in found:
        return sorted(set(found.items()) ^ set(expected.items()))  # type: ignore[arg-type]
    return [
        name
        for name, digest in found.items()
        if name != "claim.json" and not is_partial_file(name) and digest != expected.get(name)
    ]
