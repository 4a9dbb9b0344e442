"""Runs of the job as a user would start it, in this process where that is faster."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from activation_dataset.metadata import Metadata
from activation_dataset.verify import verify
from beam_pipeline.command import main
from tests.conftest import COMPILED, ROOT


def flags_of(
    model: object,
    tasks: object,
    out: object,
    flags: tuple[str, ...],
    compile_cache: str = COMPILED.name,
) -> list[str]:
    return [
        *("--model_path", str(model)),
        *("--tasks_file", str(tasks)),
        *("--output_dir", str(out)),
        *("--compile_cache", compile_cache),
        *flags,
    ]


def run(model: object, tasks: object, out: object, *flags: str) -> None:
    """Run the job, which must complete the dataset."""
    assert main(flags_of(model, tasks, out, flags)) == 0


def error_of(
    capsys: pytest.CaptureFixture[str], model: object, tasks: object, out: object, *flags: str
) -> str:
    """Run the job, which must fail with one line for the user, and return the line."""
    capsys.readouterr()
    assert main(flags_of(model, tasks, out, flags)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def run_process(
    model: object,
    tasks: object,
    out: object,
    *flags: str,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m beam_pipeline` with its own cache of compiled programs."""
    argv = flags_of(model, tasks, out, flags, compile_cache=f"{out}-compiled")
    return subprocess.run(
        [sys.executable, "-m", "beam_pipeline", *argv],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def metadata_of(out: Path) -> Metadata:
    return Metadata.from_json((out / "metadata.json").read_bytes())


def problems_of(out: Path) -> list[str]:
    """Return the problems that `python -m activation_dataset verify --records` finds."""
    return [str(problem) for problem in verify(out, records=True).problems]


def rejections(out: Path) -> list[dict[str, Any]]:
    path = out / "errors" / "rejected.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by path."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
