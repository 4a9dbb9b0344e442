"""A progress bar in the terminal during a local run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from transforms.assign_shards import ShardPlan
from transforms.extraction_progress import WorkDone, listening

LOCAL_RUNNERS = {"FnApiRunner", "DirectRunner", "BundleBasedDirectRunner"}

WAITING = "{desc}"
WORKING = "{l_bar}{bar}| {n_fmt}/{total_fmt} tokens [{remaining} left, {rate_fmt}{postfix}]"


@contextmanager
def progress_bar(options: PipelineOptions, wanted: bool) -> Iterator[None]:
    """Show a bar on stderr while a pipeline runs, and log lines above it.

    There is no bar if stderr is not a terminal, or if the workers run in other processes, whose
    progress does not reach this one.
    """
    runner = options.view_as(StandardOptions).runner or ""
    processes = options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    local = runner.rpartition(".")[2] in LOCAL_RUNNERS and not processes
    if not (wanted and local and sys.stderr.isatty()):
        yield
        return
    with (
        tqdm(
            desc="reading inputs",
            bar_format=WAITING,
            unit=" tokens",
            leave=False,
            smoothing=0,
            **_terminal_size(),
        ) as bar,
        logging_redirect_tqdm(),
        listening(_Work(bar).add),
    ):
        yield


def _terminal_size() -> dict[str, Any]:
    """Return tqdm's arguments for the size of stderr, which some terminals report as 0 x 0."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    return {"dynamic_ncols": True} if columns else {"ncols": 80, "nrows": 24}


class _Work:
    """Work of all threads. The rate excludes the first step, which loads and compiles."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._computed = self._slots = 0

    def add(self, plan: ShardPlan, done: WorkDone) -> None:
        """Add work to the bar; a listener for `listening`."""
        bar = self._bar
        with self._lock:
            if not self._slots:
                finished = bar.n
                bar.reset(plan.tokens)
                bar.n = bar.initial = finished
            if not (self._slots and done.slots):
                bar.initial += done.tokens
            bar.n += done.tokens
            if done.slots:
                self._computed += done.tokens
                self._slots += done.slots
                bar.set_postfix_str(f"{1 - self._computed / self._slots:.0%} padding", False)
            bar.bar_format = WORKING if bar.n else WAITING
            bar.set_description_str("" if bar.n else "loading the model")
