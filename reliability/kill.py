"""Kill -9 at random moments; each killed run must resume to the same bytes.

    python -m reliability.kill --kills 50 --workers 1 --seed 1
    python -m reliability.kill --kills 50 --workers 2 --seed 2

A moment is a fraction of the time of a run, so that kills also hit its start and end, or a number
of files in the folder. A resumed run may be killed again. After a kill, every file with its final
name must match an undisturbed run. After a resume, the whole folder must match, and the run must
not have rewritten existing layer files.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from activation_dataset.damage import DatasetError
from activation_dataset.reading.reader import ActivationDataset
from reliability.job import TWO_WORKERS, Job, broken, digests


def wait_for(process: subprocess.Popen[str], moment: Callable[[], bool]) -> bool:
    """Wait for a moment; return False if the process ends first."""
    while not moment():
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def draw_moment(
    generator: random.Random, out: Path, seconds: float, files: int
) -> Callable[[], bool]:
    """Return a random moment of a run, given its seconds and its number of files."""
    if generator.random() < 0.3:
        end = time.monotonic() + generator.uniform(0, seconds)
        return lambda: time.monotonic() >= end
    there = _count(out)
    wanted = generator.randint(there, max(there, files))
    return lambda: _count(out) >= wanted


def _count(out: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(out))


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a job with all its processes, and wait for the end."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def state_of(out: Path, expected: Mapping[str, str]) -> str:
    """Return the state of the folder of an interrupted run: nothing, planned, begun or complete.

    No file may be broken, and the reader must not open a dataset without metadata.
    """
    if not out.exists():
        return "nothing"
    assert not (wrong := broken(out, expected)), wrong
    if (out / "metadata.json").exists():
        return "complete"
    try:
        ActivationDataset(out)
    except DatasetError:
        return "begun" if (out / "run.json").exists() else "planned"
    raise AssertionError("a dataset without metadata was opened")


def layer_files(out: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of each layer file; rewriting the file changes them."""
    return {
        path.relative_to(out).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in out.glob("layer_*/*.tfrecord")
    }


def attempt_kills(job: Job, folder: Path, kills: int, workers: int, seed: int) -> Counter[str]:
    """Kill runs a number of times, and return how often each state was left.

    No kill may leave a broken file, and no resume may lose or rewrite a file.
    """
    generator = random.Random(seed)
    more = TWO_WORKERS if workers == 2 else ()
    if not job.cache.exists():
        job.complete(folder / "warm up", *more)
    started = time.monotonic()
    job.complete(folder / "expected", *more)
    seconds = time.monotonic() - started
    expected = digests(folder / "expected")
    states: Counter[str] = Counter()
    while states.total() < kills:
        out = folder / f"after {states.total()}"
        for _ in range(generator.randint(1, 3)):
            before = layer_files(out)
            moment = draw_moment(generator, out, seconds, len(expected))
            process = job.start(out, *more)
            came = wait_for(process, moment)
            kill_group(process)
            state = state_of(out, expected) + ("" if came else ", ended before")
            states[state] += 1
            print(f"{states.total():3} {state}: {len(layer_files(out))} layer files", flush=True)
            assert before.items() <= layer_files(out).items(), "a valid file was rewritten"
        before = layer_files(out)
        job.complete(out, *more)
        assert digests(out) == expected, "resumed to different bytes"
        assert before.items() <= layer_files(out).items(), "a valid file was rewritten"
        shutil.rmtree(out)
    return states


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        job = Job(Path(name) / "compiled")
        states = attempt_kills(job, Path(name), chosen.kills, chosen.workers, chosen.seed)
    print(f"{states.total()} kills, all resumed to the same bytes; left behind: {dict(states)}")


if __name__ == "__main__":
    main()
