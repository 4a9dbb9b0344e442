"""The end of a local job whose worker process dies.

Beam's local runner waits forever for a worker that died before it had opened its channel.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from beam_pipeline.failures import WORKER_DIED

STATUS = 2
GRACE_SECONDS = 5.0
"""Time for the runner to notice by itself."""

_EXITED = re.compile(r"Worker subprocess exited with return code (-?\d+)")


@contextmanager
def ends_with_its_workers() -> Iterator[None]:
    """While a pipeline runs, end this process if a worker dies and the runner does not notice."""
    over = threading.Event()
    before = threading.excepthook

    def notice(raised: threading.ExceptHookArgs) -> None:
        if isinstance(raised.exc_value, grpc.RpcError):
            return  # The channel to that worker: a consequence of its death.
        if not (found := _EXITED.search(str(raised.exc_value))):
            before(raised)
        elif not over.wait(GRACE_SECONDS):
            line = WORKER_DIED.format(status=f" (status {found[1]})")
            print(f"error: {line}", file=sys.stderr, flush=True)
            os._exit(STATUS)

    threading.excepthook = notice
    try:
        yield
    finally:
        over.set()
        threading.excepthook = before
