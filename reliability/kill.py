"""Kill -9 at random moments; each run is resumed, perhaps killed again, to the same bytes.

    python -m reliability.kill --kills 50 --workers 1 --seed 1
    python -m reliability.kill --kills 50 --workers 2 --seed 2
    python -m reliability.kill --kills 10 --workers 2 --seed 3 --victim worker

A moment is drawn either as a share of the time that a run takes, so that starting up and ending are
hit too, or as a number of files in the folder. After each kill, whatever has its name must be
whole; after each resume, the folder's bytes must be those of a run that was left alone, and layer
files that were there must be the same files still.
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
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from activation_dataset.reading.reader import ActivationDataset, DatasetError
from reliability.job import TWO_WORKERS, Job, damage, digests

HANGS_AFTER = 600.0
"""Seconds after which a job whose worker was killed counts as hanging."""


def wait_for(process: subprocess.Popen[str], moment: Callable[[], bool]) -> bool:
    """Waits until a moment has come; False if the process ends before."""
    while not moment():
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def draw_moment(
    generator: random.Random, out: Path, seconds: float, files: int
) -> Callable[[], bool]:
    """A random moment of a run that takes so many seconds and makes so many files."""
    if generator.random() < 0.3:
        end = time.monotonic() + generator.uniform(0, seconds)
        return lambda: time.monotonic() >= end
    there = _count(out)
    wanted = generator.randint(there, max(there, files))
    return lambda: _count(out) >= wanted


def _count(out: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(out))


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kills a job and all that it started, and waits."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the job's Beam workers."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            group = os.getpgid(int(folder.name))
            command = (folder / "cmdline").read_bytes()
        except (ValueError, OSError):
            continue
        if group == process.pid and b"sdk_worker_main" in command and b"/bin/sh" not in command:
            found.append(int(folder.name))
    return sorted(found)


def check_cut_off(out: Path) -> str:
    """Says in what state a kill left the folder.

    Raises:
      AssertionError: if anything in it is broken.
    """
    if not out.exists():
        return "nothing"
    assert not (wrong := damage(out)), wrong
    if (out / "metadata.json").exists():
        return "complete"
    try:
        ActivationDataset(out)
    except DatasetError:
        return "begun" if (out / "run.json").exists() else "planning"
    raise AssertionError("a dataset without metadata was opened")


def layer_files(out: Path) -> dict[str, tuple[int, int]]:
    """Path to inode and time of writing: changes where a file is written again."""
    return {
        path.relative_to(out).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in out.glob("layer_*/*.tfrecord")
    }


def kill_once(job: Job, out: Path, more: Sequence[str], moment: Callable[[], bool]) -> str:
    """Starts the job, kills all of it at the moment, and says what that left."""
    process = job.start(out, *more)
    came = wait_for(process, moment)
    kill_group(process)
    state = check_cut_off(out)
    return state if came else f"{state}, ended before"


def kill_worker(
    job: Job, out: Path, more: Sequence[str], moment: Callable[[], bool], generator: random.Random
) -> str:
    """Starts the job, kills one of its workers at the moment, and says how the job ended."""
    process = job.start(out, *more)
    came = wait_for(process, lambda: moment() and bool(workers_of(process)))
    if came:
        os.kill(generator.choice(workers_of(process)), signal.SIGKILL)
    try:
        _, errors = process.communicate(timeout=HANGS_AFTER)
    except subprocess.TimeoutExpired:
        kill_group(process)
        return "hung"
    state = check_cut_off(out)
    if process.returncode == 0:  # It had done its work when it died, or was not killed at all.
        assert state == "complete", errors
    else:
        assert process.returncode == 2, errors
        assert "error: a worker process died" in errors
    return f"{state}, exit {process.returncode}" + ("" if came else ", ended before")


def attempt_kills(
    job: Job, folder: Path, kills: int, workers: int, seed: int, victim: str = "job"
) -> Counter[str]:
    """Kills so many times, and gives the number of times that each state was left.

    Raises:
      AssertionError: if anything was left broken, lost, or made again.
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
            if victim == "worker":
                state = kill_worker(job, out, more, moment, generator)
            else:
                state = kill_once(job, out, more, moment)
            states[state] += 1
            print(f"{states.total():3} {state}: {len(layer_files(out))} layer files", flush=True)
            kept = layer_files(out)
            assert all(kept[name] == before[name] for name in before), "a sound file was rewritten"
        before = layer_files(out)
        job.complete(out, *more)
        assert digests(out) == expected, "resumed to other bytes"
        after = layer_files(out)
        assert all(after[name] == before[name] for name in before), "a sound file was rewritten"
        shutil.rmtree(out)
    return states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--victim", choices=("job", "worker"), default="job")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        folder = Path(name)
        states = attempt_kills(
            Job(folder / "compiled"),
            folder,
            arguments.kills,
            arguments.workers,
            arguments.seed,
            arguments.victim,
        )
    print(f"{states.total()} kills, all resumed to the same bytes; left behind: {dict(states)}")


if __name__ == "__main__":
    main()
