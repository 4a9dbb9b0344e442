"""Loading a thing once per process, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock, RLock
from typing import Generic, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


class _Entry(Generic[Value]):
    """A value that is loaded under its own lock."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.values: list[Value] = []


def load_once(load: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """Make a function load each value once per process and return it from then on.

    Threads that ask for the same value wait for the first of them, threads that ask for different
    values do not wait for each other. A failure is not kept: the next caller tries again. Use this
    instead of `functools.cache`, which lets several threads in at once.

    Args:
      load: a function of hashable arguments.

    Returns:
      The function with the same signature. Spell the arguments alike in every call: `f(1)` and
      `f(x=1)` are loaded separately.
    """
    entries: dict[Hashable, _Entry[Value]] = {}
    guard = Lock()

    @wraps(load)
    def loaded(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        key = (args, tuple(sorted(kwargs.items())))
        with guard:
            entry = entries.setdefault(key, _Entry())
        if not entry.values:
            with entry.lock:
                if not entry.values:
                    entry.values.append(load(*args, **kwargs))
        return entry.values[0]

    return loaded
