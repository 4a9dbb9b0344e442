"""The job as its user starts it: a process group of its own, so that all of it can be killed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from activation_dataset.verifying.dataset import Problem, verify

ROOT = Path(__file__).parents[1]
TASKS = tuple(
    str(ROOT / "examples" / "tasks" / f"{name}.json") for name in ("fall", "mirror", "tile", "turn")
)
"""Four tasks with five test inputs, none of more than 512 tokens."""

TWO_WORKERS = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")

MANY_FILES = (
    *("--layers_to_extract", "all", "--pooling", "none", "--storage_dtype", "bfloat16"),
    *("--samples_per_shard", "1", "--batch_size", "1"),
)
"""A shard for each of the five prompts, in 24 layers: 125 files, 3.6 MB."""


@dataclass(frozen=True)
class Job:
    """A command, but for its output folder.

    Attributes:
      cache: where compiled programs are kept; warm after the first run.
    """

    cache: Path
    tasks: Sequence[str] = TASKS
    model: str = "random:tiny"
    flags: Sequence[str] = MANY_FILES

    def command(self, out: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "beam_pipeline", "--model_path", self.model),
            *("--tasks_file", *self.tasks, "--output_dir", str(out)),
            *("--compile_cache", str(self.cache), *self.flags),
        ]

    def start(
        self, out: Path, *more: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts it in a new session; what it prints is kept."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COM")}
        return subprocess.Popen(
            [*self.command(out), *more],
            cwd=ROOT,
            env={**kept, "JAX_PLATFORMS": "cpu", "NO_GCE_CHECK": "true", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, out: Path, *more: str, environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Runs it to its end: the exit status and what it wrote to stderr."""
        process = self.start(out, *more, environment=environment)
        _, errors = process.communicate()
        return process.returncode, errors

    def complete(self, out: Path, *more: str) -> None:
        """Runs it to a complete dataset.

        Raises:
          AssertionError: if it fails.
        """
        status, errors = self.run(out, *more)
        assert status == 0, f"exit status {status}: {errors}"


def digests(out: Path) -> dict[str, str]:
    """File to SHA-256 of all that is in a folder."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def damage(out: Path) -> list[Problem]:
    """What verify finds wrong that a run which was cut off may not leave behind.

    It may leave files out and partial files lying about; a file that has its name must be whole,
    and `metadata.json` may be there only if nothing at all is wrong.
    """
    problems = verify(out).problems if out.exists() else ()
    if (out / "metadata.json").exists():
        return list(problems)
    return [
        problem
        for problem in problems
        if not problem.what.startswith(("missing", "left behind by a writer"))
    ]
