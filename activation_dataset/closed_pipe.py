"""Quiet exit of commands when the reader of their output, such as `head`, closes the pipe."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

CLOSED = 141
"""Exit status of a command whose output pipe was closed, as shells report SIGPIPE."""


def until_closed(command: Callable[[], int | None]) -> int:
    """Run a command. End without a traceback if the reader of standard output closes the pipe.

    Args:
        command: function that prints and returns its exit status, or None for 0.

    Returns:
        The exit status of the command, or CLOSED.
    """
    try:
        try:
            status = command() or 0
        except SystemExit:
            sys.stdout.flush()  # The text of --help.
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_closed(sys.stdout.fileno()):
            raise  # Another pipe or connection failed.
        # The interpreter flushes the remaining buffer at exit, which would raise the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    return status


def _is_closed(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
