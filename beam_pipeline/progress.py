"""A line on the terminal that says how far a local run is; it never goes anywhere else."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TextIO

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from activation_dataset.format import RUN_FILE, layer_folder, parse_shard_file
from activation_dataset.sites import DEFAULT_HOOK_POINT, sites_of
from transforms.assign_shards import ShardPlan
from transforms.extraction_progress import WorkDone, listening

LOCAL_RUNNERS = {"FnApiRunner", "DirectRunner", "BundleBasedDirectRunner"}

REFRESH_SECONDS = 0.25
FOLDER_SECONDS = 2.0
"""Between looks at the folder, where the work is done in processes of their own."""

_BAR_WIDTH = 24
_CLEAR = "\r\x1b[K"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
      plan: samples and tokens in all; None while tasks are read.
      done: what is finished, by this run or an earlier one.
      computed: tokens that this run has computed.
      first_step, last_step: when those steps were done, in seconds of the clock; None before.
      first_tokens: the tokens of the first, whose time was spent on loading and compiling too.
    """

    plan: ShardPlan | None = None
    done: WorkDone = field(default_factory=WorkDone)
    computed: int = 0
    first_step: float | None = None
    last_step: float | None = None
    first_tokens: int = 0

    def after(self, plan: ShardPlan, work: WorkDone, now: float) -> Progress:
        """With more work done."""
        done = WorkDone(
            self.done.samples + work.samples,
            self.done.tokens + work.tokens,
            self.done.slots + work.slots,
        )
        if not work.slots:
            return replace(self, plan=plan, done=done)
        first = self.first_step is None
        return replace(
            self,
            plan=plan,
            done=done,
            computed=self.computed + work.tokens,
            first_step=now if first else self.first_step,
            last_step=now,
            first_tokens=work.tokens if first else self.first_tokens,
        )

    @property
    def tokens_per_second(self) -> float | None:
        """Mean from the first step to the last, without the first; None until there is another."""
        if self.first_step is None or self.last_step is None or self.last_step <= self.first_step:
            return None
        return (self.computed - self.first_tokens) / (self.last_step - self.first_step)

    def seconds_left(self, now: float) -> float | None:
        """At that speed; None while it is not known, or nothing is left."""
        speed = self.tokens_per_second
        if not speed or self.plan is None or self.last_step is None:
            return None
        left = self.plan.tokens - self.done.tokens
        return max(0.0, self.last_step + left / speed - now) if left else None


def progress_line(progress: Progress, seconds: float, now: float, width: int) -> str:
    """What the terminal shows, at most ``width`` characters.

    Args:
      seconds: since the run began.
      now: of the clock that ``progress`` was counted by.
    """
    plan, done = progress.plan, progress.done
    if plan is None:
        return _fit([f"reading tasks, {_clock(seconds)}"], width)
    if not done.tokens:
        return _fit([f"loading the model for {plan.tokens:,} tokens, {_clock(seconds)}"], width)
    parts = [_bar(done.tokens / plan.tokens), f"{done.tokens:,} of {plan.tokens:,} tokens"]
    left = progress.seconds_left(now)
    if left is not None:
        parts.append(f"{_clock(left)} left")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if done.slots:
        parts.append(f"{1 - progress.computed / done.slots:.0%} padding")
    return _fit(parts, width)


def files_line(done: int, total: int, seconds: float, width: int) -> str:
    """What the terminal shows where only files can be counted."""
    if not total:
        return _fit([f"reading tasks, {_clock(seconds)}"], width)
    return _fit([_bar(done / total), f"{done:,} of {total:,} files", _clock(seconds)], width)


def count_files(output_dir: str) -> tuple[int, int]:
    """Layer files that a local folder has, and that its ``run.json`` plans; 0 before that is."""
    try:
        with open(os.path.join(output_dir, RUN_FILE), encoding="utf-8") as stream:
            recorded = json.load(stream)
    except FileNotFoundError:
        return 0, 0
    configuration = recorded["configuration"]
    hook_points = configuration.get("hook_points", [DEFAULT_HOOK_POINT])
    folders = [*map(layer_folder, sites_of(configuration["layers_extracted"], hook_points))]
    found = 0
    for folder in folders:
        with suppress(FileNotFoundError):
            names = os.listdir(os.path.join(output_dir, folder))
            found += sum(parse_shard_file(f"{folder}/{name}") is not None for name in names)
    return found, recorded["plan"]["num_shards"] * len(folders)


@contextmanager
def shown(
    options: PipelineOptions, output_dir: str, wanted: bool, stream: TextIO
) -> Iterator[None]:
    """Shows how far the run is while it lasts: in a terminal, and where it runs on this machine.

    Threads of this process tell of each step. Where workers are processes of their own, the files
    in a local folder are counted.
    """
    runner = options.view_as(StandardOptions).runner or ""
    local = runner.rpartition(".")[2] in LOCAL_RUNNERS
    processes = options.view_as(DirectOptions).direct_running_mode == "multi_processing"

    def line(seconds: float, width: int) -> str:
        return files_line(*count_files(output_dir), seconds, width)

    if not (wanted and stream.isatty() and local) or (processes and "://" in output_dir):
        yield
    elif processes:
        with _repeated(stream, line, FOLDER_SECONDS):
            yield
    else:
        counted = _Counted()
        with listening(counted.add), _repeated(stream, counted.line, REFRESH_SECONDS):
            yield


class _Counted:
    """Progress that threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress = Progress()

    def add(self, plan: ShardPlan, work: WorkDone) -> None:
        with self._lock:
            self._progress = self._progress.after(plan, work, time.monotonic())

    def line(self, seconds: float, width: int) -> str:
        return progress_line(self._progress, seconds, time.monotonic(), width)


@contextmanager
def _repeated(stream: TextIO, line: Callable[[float, int], str], every: float) -> Iterator[None]:
    """Writes a line again and again over itself; logging takes its place for a moment.

    Args:
      line: of the seconds that have passed, and the width of the terminal.
      every: seconds between two times.
    """
    started = time.monotonic()
    over = threading.Event()
    lock = threading.Lock()

    def write(text: str) -> None:
        with lock:
            stream.write(text)
            stream.flush()

    def draw() -> None:
        while not over.wait(every):
            width = shutil.get_terminal_size().columns - 1
            write(_CLEAR + line(time.monotonic() - started, width))

    def make_room(record: logging.LogRecord) -> bool:
        write(_CLEAR)
        return True

    thread = threading.Thread(target=draw, name="progress", daemon=True)
    with ExitStack() as stack:
        for handler in logging.getLogger().handlers:
            handler.addFilter(make_room)
            stack.callback(handler.removeFilter, make_room)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            write(_CLEAR)


def _bar(share: float) -> str:
    filled = int(min(share, 1) * _BAR_WIDTH)
    return f"[{'#' * filled}{'-' * (_BAR_WIDTH - filled)}] {min(share, 1):4.0%}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _fit(parts: list[str], width: int) -> str:
    """As many of the parts, from the first on, as there is room for."""
    while len(parts) > 1 and len(", ".join(parts)) > width:
        parts = parts[:-1]
    return ", ".join(parts)[: max(width, 0)]
