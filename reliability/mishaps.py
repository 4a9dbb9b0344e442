"""What can happen to an output folder during a run, one mishap after the other.

    python -m reliability.mishaps --seed 1

Each must end in one line that says what happened, or in nothing at all; whatever has its name must
be whole, and the same command again must end in the bytes of a run that nothing happened to. The
disks are small tmpfs mounts, which need root.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from reliability.job import Job, damage, digests
from reliability.kill import kill_group, wait_for

YEAR = 365 * 24 * 3600
TOO_LATE = "the run had ended"

HEAD_START = 2.0
"""Seconds that one of two runs has at most; starting takes longer, so that they meet."""


@dataclass(frozen=True)
class Attempt:
    """What is needed to try a mishap.

    Attributes:
      folder: for what it writes.
      expected: the digests of an undisturbed run.
    """

    job: Job
    folder: Path
    expected: dict[str, str]
    generator: random.Random

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def after_some_files(self) -> Callable[[], bool]:
        """A random moment while files are written."""
        wanted = self.generator.randint(5, len(self.expected) - 30)
        return lambda: sum(len(names) for *_, names in os.walk(self.out)) >= wanted

    def resumes(self) -> None:
        """
        Raises:
          AssertionError: if the folder is broken, or the same command does not mend it.
        """
        assert not (wrong := damage(self.out)), wrong
        self.job.complete(self.out)
        assert digests(self.out) == self.expected


def refused(status: int, errors: str, *words: str) -> str:
    """The one line that a run ended with.

    Raises:
      AssertionError: if it ended in another way.
    """
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 2, (status, errors)
    assert len(lines) == 1, errors
    assert "Traceback" not in errors, errors
    assert all(word in lines[0] for word in words), lines
    return lines[0]


@contextmanager
def disk(place: Path, megabytes: int) -> Iterator[None]:
    """A file system of that size, mounted for a while."""
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
        assert not damage(attempt.out)
        remount(attempt.out, "size=64m")
        attempt.resumes()
    return said


def read_only_from_the_start(attempt: Attempt) -> str:
    with disk(attempt.out, 64):
        remount(attempt.out, "ro")
        said = refused(*attempt.job.run(attempt.out), "Read-only file system", "may write to")
        remount(attempt.out, "rw")
        attempt.resumes()
    return said


def read_only_on_the_way(attempt: Attempt) -> str:
    with disk(attempt.out, 64):
        process = attempt.job.start(attempt.out)
        wait_for(process, attempt.after_some_files())
        # A file that is being written keeps a file system from becoming read-only.
        while subprocess.run(
            ["mount", "-o", "remount,ro", str(attempt.out)], capture_output=True, check=False
        ).returncode:
            pass
        _, errors = process.communicate()
        said = refused(process.returncode, errors, "Read-only file system")
        remount(attempt.out, "rw")
        attempt.resumes()
    return said


def folder_removed(attempt: Attempt) -> str:
    process = attempt.job.start(attempt.out)
    if not wait_for(process, attempt.after_some_files()):
        return TOO_LATE
    while process.poll() is None and attempt.out.exists():
        shutil.rmtree(attempt.out, ignore_errors=True)
    _, errors = process.communicate()
    if process.returncode == 0:
        return TOO_LATE
    said = refused(process.returncode, errors)
    # The second where it happened between the last look at the claim and the renaming.
    assert "it was removed" in said or "No such file" in said
    attempt.resumes()
    return said


def layer_file_removed(attempt: Attempt) -> str:
    process = attempt.job.start(attempt.out)
    wait_for(process, attempt.after_some_files())
    removed = next(attempt.out.glob("layer_*/*.tfrecord"))
    removed.unlink()
    _, errors = process.communicate()
    if process.returncode == 0:
        return TOO_LATE
    said = refused(process.returncode, errors, "removed or changed since they were written")
    assert not (attempt.out / "metadata.json").exists()
    attempt.resumes()
    return said


def clock_set_back(attempt: Attempt) -> str:
    """Killed, its files dated a century ahead, and resumed a year before it was begun."""
    process = attempt.job.start(attempt.out)
    wait_for(process, attempt.after_some_files())
    kill_group(process)
    for path in attempt.out.rglob("*"):
        os.utime(path, (100 * YEAR * 1.3, 100 * YEAR * 1.3))
    clock = attempt.folder / "clock"
    clock.mkdir()
    (clock / "sitecustomize.py").write_text(
        f"import time\nnow = time.time\ntime.time = lambda: now() - {YEAR}\n"
        f"time.time_ns = lambda: int(time.time() * 1e9)\n"
    )
    modules = os.pathsep.join([str(clock), *filter(None, [os.environ.get("PYTHONPATH")])])
    status, errors = attempt.job.run(attempt.out, environment={"PYTHONPATH": modules})
    assert (status, errors) == (0, ""), errors
    assert digests(attempt.out) == attempt.expected
    return "goes on; nothing looks at the time"


def damaged_dataset_and_killed_repair(attempt: Attempt) -> str:
    """A complete dataset, one of its files broken, resumed and killed: no commit may be there."""
    attempt.job.complete(attempt.out)
    broken = attempt.generator.choice(sorted(attempt.out.glob("layer_*/*.tfrecord")))
    broken.write_bytes(broken.read_bytes()[:-7])
    process = attempt.job.start(attempt.out)
    wait_for(process, lambda: not (attempt.out / "metadata.json").exists())
    kill_group(process)
    assert not (attempt.out / "metadata.json").exists()
    attempt.job.complete(attempt.out)
    assert digests(attempt.out) == attempt.expected
    return "the commit is gone before the repair begins, and back after it"


def two_runs_at_once(attempt: Attempt) -> str:
    first = attempt.job.start(attempt.out)
    time.sleep(attempt.generator.uniform(0, HEAD_START))
    second = attempt.job.start(attempt.out)
    ends = [(process.communicate()[1], process.returncode) for process in (first, second)]
    finished = [status == 0 for _, status in ends]
    assert any(finished), ends
    said = [
        refused(status, errors, "another run was started into it")
        for errors, status in ends
        if status
    ]
    assert digests(attempt.out) == attempt.expected
    which = "first" if not finished[0] else "second"
    return f"the {which} stops, the other finishes: {said[0]}" if said else "one after the other"


def another_configuration(attempt: Attempt) -> str:
    first = attempt.job.start(attempt.out)
    wait_for(first, lambda: (attempt.out / "run.json").exists())
    other = ("--compute_dtype", "float32")
    said = refused(*attempt.job.run(attempt.out, *other), "compute_dtype", '"float32" now')
    _, errors = first.communicate()
    assert first.returncode == 0, errors
    assert digests(attempt.out) == attempt.expected
    return f"the second is refused, the first is not disturbed: {said}"


def overwritten_by_another_configuration(attempt: Attempt) -> str:
    other = ("--compute_dtype", "float32")
    alone = attempt.folder / "alone"
    attempt.job.complete(alone, *other)
    first = attempt.job.start(attempt.out)
    time.sleep(attempt.generator.uniform(0, HEAD_START))
    second = attempt.job.start(attempt.out, *other, "--overwrite")
    _, first_errors = first.communicate()
    _, second_errors = second.communicate()
    if second.returncode == 0:
        assert digests(attempt.out) == digests(alone)
        if first.returncode == 0:
            return "the first had ended"
        said = refused(first.returncode, first_errors)
        return f"the first stops, the second finishes: {said}"
    # The first one was the slower to claim the folder.
    assert first.returncode == 0, (first_errors, second_errors)
    assert digests(attempt.out) == attempt.expected
    said = refused(second.returncode, second_errors, "another run was started into it")
    return f"the second stops, the first finishes: {said}"


MISHAPS: tuple[tuple[Callable[[Attempt], str], int], ...] = (
    (full_disk, 1),
    (read_only_from_the_start, 1),
    (read_only_on_the_way, 1),
    (folder_removed, 3),
    (layer_file_removed, 3),
    (clock_set_back, 1),
    (damaged_dataset_and_killed_repair, 2),
    (another_configuration, 1),
    (overwritten_by_another_configuration, 4),
    (two_runs_at_once, 10),
)
"""What is tried, and how often."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="the name of one of them")
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
