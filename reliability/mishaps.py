"""Mishaps that hit an output folder during a run.

    python -m reliability.mishaps --seed 1

After each mishap, the job must finish or end with one line that explains the error. Every file with
its final name must match an undisturbed run, and the same command must complete the dataset with
the same bytes. The disks are small tmpfs mounts, which need root.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from reliability.job import Job, broken, digests, ended
from reliability.kill import kill_group, wait_for

TOO_LATE = "the run had ended"

OTHER = ("--compute_dtype", "float32")
"""Flags of another configuration."""

HEAD_START = 2.0
"""Largest head start of one of two runs in seconds. Starting takes longer, so the runs overlap."""


@dataclass(frozen=True)
class Attempt:
    """Job and folder of one mishap.

    Attributes:
        job: job that the mishap hits.
        folder: folder for all output.
        expected: digests of an undisturbed run.
        generator: source of random moments.
    """

    job: Job
    folder: Path
    expected: dict[str, str]
    generator: random.Random

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def begun(self) -> subprocess.Popen[str]:
        """Start the job, and wait for a random moment while it writes files."""
        process = self.job.start(self.out)
        wanted = self.generator.randint(5, len(self.expected) - 30)
        wait_for(process, lambda: sum(len(names) for *_, names in os.walk(self.out)) >= wanted)
        return process

    def resumes(self) -> None:
        """Run the same command again, which must find no broken file and complete the dataset."""
        assert not (wrong := broken(self.out, self.expected)), wrong
        self.job.complete(self.out)
        assert digests(self.out) == self.expected


def refused(status: int, errors: str, *words: str) -> str:
    """Return the single error line of a failed run, which must contain the words."""
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 2, (status, errors)
    assert len(lines) == 1, errors
    assert "Traceback" not in errors, errors
    assert all(word in lines[0] for word in words), lines
    return lines[0]


@contextmanager
def disk(place: Path, megabytes: int) -> Iterator[None]:
    """Mount a file system of a limited size for the duration of the block."""
    place.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def full_disk(attempt: Attempt) -> str:
    with disk(attempt.out, 1):
        said = refused(*attempt.job.run(attempt.out), str(attempt.out), "No space left", "has room")
        remount(attempt.out, "size=64m")
        attempt.resumes()
    return said


def read_only_on_the_way(attempt: Attempt) -> str:
    with disk(attempt.out, 64):
        process = attempt.begun()
        # Remounting read-only fails while a file is open for writing.
        while subprocess.run(
            ["mount", "-o", "remount,ro", str(attempt.out)], capture_output=True, check=False
        ).returncode:
            pass
        said = refused(*ended(process), "Read-only file system")
        remount(attempt.out, "rw")
        attempt.resumes()
    return said


def folder_removed(attempt: Attempt) -> str:
    process = attempt.begun()
    while process.poll() is None and attempt.out.exists():
        shutil.rmtree(attempt.out, ignore_errors=True)
    status, errors = ended(process)
    if status == 0:
        return TOO_LATE
    said = refused(status, errors)
    # The second message occurs if the removal falls between the check of the claim and the rename.
    assert "it was removed" in said or "No such file" in said
    attempt.resumes()
    return said


def layer_file_removed(attempt: Attempt) -> str:
    process = attempt.begun()
    next(attempt.out.glob("layer_*/*.tfrecord")).unlink()
    status, errors = ended(process)
    if status == 0:
        return TOO_LATE
    said = refused(status, errors, "removed or changed since they were written")
    assert not (attempt.out / "metadata.json").exists()
    attempt.resumes()
    return said


def damaged_dataset_and_killed_repair(attempt: Attempt) -> str:
    """Damage a file of a complete dataset and kill the repair, which must leave no commit."""
    attempt.job.complete(attempt.out)
    damaged = attempt.generator.choice(sorted(attempt.out.glob("layer_*/*.tfrecord")))
    damaged.write_bytes(damaged.read_bytes()[:-7])
    process = attempt.job.start(attempt.out)
    wait_for(process, lambda: not (attempt.out / "metadata.json").exists())
    kill_group(process)
    assert not (attempt.out / "metadata.json").exists()
    attempt.job.complete(attempt.out)
    assert digests(attempt.out) == attempt.expected
    return "the commit was removed before the repair began, and was back after it"


def two_runs_at_once(attempt: Attempt) -> str:
    return _compete(attempt, (), attempt.expected)


def overwritten_by_another_configuration(attempt: Attempt) -> str:
    attempt.job.complete(attempt.folder / "alone", *OTHER)
    return _compete(attempt, (*OTHER, "--overwrite"), digests(attempt.folder / "alone"))


def _compete(attempt: Attempt, more: Sequence[str], expected: dict[str, str]) -> str:
    """Start two runs in one folder; at least one must finish, with the bytes of the last one.

    The second run has more flags. Run alone, it writes files with the digests `expected`.
    """
    first = attempt.job.start(attempt.out)
    time.sleep(attempt.generator.uniform(0, HEAD_START))
    second = attempt.job.start(attempt.out, *more)
    (first_status, first_errors), (second_status, second_errors) = ended(first), ended(second)
    assert 0 in (first_status, second_status), (first_errors, second_errors)
    assert digests(attempt.out) == (attempt.expected if second_status else expected)
    if second_status:
        said = refused(second_status, second_errors, "another run was started in it")
        return f"the second stops, the first finishes: {said}"
    if first_status:
        return f"the first stops, the second finishes: {refused(first_status, first_errors)}"
    return "one after the other"


MISHAPS: tuple[tuple[Callable[[Attempt], str], int], ...] = (
    (full_disk, 1),
    (read_only_on_the_way, 1),
    (folder_removed, 3),
    (layer_file_removed, 3),
    (damaged_dataset_and_killed_repair, 2),
    (overwritten_by_another_configuration, 4),
    (two_runs_at_once, 10),
)
"""Mishaps and their numbers of attempts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="name of a single mishap to run")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="mishaps-") as name:
        folder = Path(name)
        job = Job(folder / "compiled")
        job.complete(folder / "expected")
        first = Attempt(job, folder, digests(folder / "expected"), generator)
        for mishap, times in MISHAPS:
            if arguments.only not in (None, mishap.__name__):
                continue
            for number in range(times):
                attempt = replace(first, folder=folder / f"{mishap.__name__} {number}")
                attempt.folder.mkdir()
                said = mishap(attempt)
                print(f"{mishap.__name__.replace('_', ' ')}: {said}", flush=True)
                shutil.rmtree(attempt.folder)


if __name__ == "__main__":
    main()
