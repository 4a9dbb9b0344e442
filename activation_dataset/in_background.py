"""Doing one thing while another goes on: numpy, checksums and files leave the interpreter free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

_THREADS = ThreadPoolExecutor(thread_name_prefix="background")


@contextmanager
def in_background(function: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Calls the function while the body runs; it has ended, too, when the body has.

    Raises:
        Exception: what the body raises, or else what the function raises.
    """
    call = _THREADS.submit(function, *arguments)
    try:
        yield
    finally:
        wait([call])
    call.result()
