"""A worker process that dies ends the job, in one line and soon.

Beam's local runner has no other worker do its work. It fails with a trace if the worker's channel
broke, and waits for ever if the worker died before it had opened one.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

STATUS = 2
GRACE_SECONDS = 5.0
"""How long the runner is given to notice by itself."""

_EXITED = re.compile(r"Worker subprocess exited with return code (-?\d+)")
_CHANNEL_BROKE = "Channel closed prematurely"


class WorkerLostError(RuntimeError):
    """A worker process that died."""


def message(status: str = "") -> str:
    return (
        f"a worker process died{status}: it was killed, perhaps because memory ran out. Run the "
        "same command again, which goes on from what is finished; fewer workers need less memory."
    )


@contextmanager
def ends_with_its_workers() -> Iterator[None]:
    """While a pipeline runs: turns the death of a worker process into an error, or the exit.

    Raises:
      WorkerLostError: if the runner noticed.
    """
    over = threading.Event()
    before = threading.excepthook

    def notice(raised: threading.ExceptHookArgs) -> None:
        if isinstance(raised.exc_value, grpc.RpcError):
            return  # A channel to that worker: a consequence, and said by what follows.
        if not (found := _EXITED.search(str(raised.exc_value))):
            before(raised)
        elif not over.wait(GRACE_SECONDS):
            print(f"error: {message(f' (status {found[1]})')}", file=sys.stderr, flush=True)
            os._exit(STATUS)

    threading.excepthook = notice
    try:
        yield
    except RuntimeError as error:
        if _CHANNEL_BROKE in str(error):
            raise WorkerLostError(message()) from error
        raise
    finally:
        over.set()
        threading.excepthook = before
