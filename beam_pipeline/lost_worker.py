"""Failures in the threads of the runner.

Beam's local runner waits forever for a worker that died before it opened its channel. When an
engine is gone, its client fails in several threads, with errors that say less than the job's error.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from beam_pipeline.failures import WORKER_DIED, modules_of

STATUS = 2
GRACE_SECONDS = 5.0
"""Time for the runner to notice by itself."""

_EXITED = re.compile(r"Worker subprocess exited with return code (-?\d+)")


@contextmanager
def ends_with_its_workers() -> Iterator[None]:
    """While a pipeline runs, end this process if a worker dies and the runner does not notice.

    After a failure, more threads may fail until the process ends.
    """
    over = threading.Event()
    before = threading.excepthook

    def notice(raised: threading.ExceptHookArgs) -> None:
        if _comes_from_channel(raised.exc_value):
            return
        if not (found := _EXITED.search(str(raised.exc_value))):
            before(raised)
        elif not over.wait(GRACE_SECONDS):
            line = WORKER_DIED.format(status=f" (status {found[1]})")
            print(f"error: {line}", file=sys.stderr, flush=True)
            os._exit(STATUS)

    threading.excepthook = notice
    try:
        yield
        threading.excepthook = before
    finally:
        over.set()


def _comes_from_channel(error: BaseException | None) -> bool:
    """Return True if a channel to a worker or an engine broke, a consequence of its end."""
    if error is None:
        return False
    return isinstance(error, grpc.RpcError) or any(
        module.startswith("grpc.") for module in modules_of(error)[-1:]
    )
