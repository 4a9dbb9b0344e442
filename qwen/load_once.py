"""Values that a process loads once, regardless of the number of threads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock
from typing import TypeVar, TypeVarTuple

Arguments = TypeVarTuple("Arguments")
Value = TypeVar("Value")


def load_once(load: Callable[[*Arguments], Value]) -> Callable[[*Arguments], Value]:
    """Make a function of hashable arguments load each value once per process.

    If several threads request the same value, one loads it and the others wait. Threads that
    request different values do not wait for each other. A failure is not cached: the next caller
    tries again. `functools.cache` would let several threads load the same value.
    """
    values: dict[Hashable, Value] = {}
    locks: defaultdict[Hashable, Lock] = defaultdict(Lock)
    guard = Lock()

    @wraps(load)
    def loaded(*arguments: *Arguments) -> Value:
        with guard:
            lock = locks[arguments]
        with lock:
            if arguments not in values:
                values[arguments] = load(*arguments)
            return values[arguments]

    return loaded
