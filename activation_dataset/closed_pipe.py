"""Commands whose output goes into a pipe, such as one to `head`, that may be closed early."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

CLOSED = 141
"""Exit status of a command whose output nobody reads, as shells report SIGPIPE."""


def until_closed(command: Callable[[], int | None]) -> int:
    """Run a command, and end without a trace if the reader of its output has seen enough.

    Args:
        command: prints, and returns its exit status, or None for 0.

    Returns:
        The exit status: that of the command, or CLOSED.
    """
    try:
        try:
            status = command() or 0
        except SystemExit:
            sys.stdout.flush()  # the text of --help
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_closed(sys.stdout.fileno()):
            raise  # another pipe or connection
        # What is left in the buffer must go somewhere when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    return status


def _is_closed(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
