"""Progress of the extraction: counters of the job, and calls to listeners in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from apache_beam.metrics import Metrics

from transforms.assign_shards import ShardPlan


@dataclass(frozen=True)
class WorkDone:
    """Samples and tokens that are finished.

    `slots` are the token slots that the device computed for them, padding included; 0 for samples
    whose files an earlier run has written.
    """

    samples: int = 0
    tokens: int = 0
    slots: int = 0


Listener = Callable[[ShardPlan, WorkDone], None]
"""Function that any thread calls with the plan and the new work, if any."""

_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call a listener for the work of this process, but not of other worker processes."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class ProgressCounters:
    """The counters `samples`, `tokens`, `slots` and `steps` of the namespace `extract`.

    `1 - tokens / slots` is the share of padding.
    """

    def __init__(self) -> None:
        self._samples = Metrics.counter("extract", "samples")
        self._tokens = Metrics.counter("extract", "tokens")
        self._slots = Metrics.counter("extract", "slots")
        self._steps = Metrics.counter("extract", "steps")

    def begin(self, plan: ShardPlan) -> None:
        """Tell the listeners that a shard begins."""
        _tell(plan, WorkDone())

    def step(self, plan: ShardPlan, done: WorkDone) -> None:
        """Count a finished step of the device."""
        self._samples.inc(done.samples)
        self._tokens.inc(done.tokens)
        self._slots.inc(done.slots)
        self._steps.inc()
        _tell(plan, done)

    def resumed(self, plan: ShardPlan, samples: int, tokens: int) -> None:
        """Tell the listeners of a shard that an earlier run has extracted."""
        _tell(plan, WorkDone(samples, tokens))


def _tell(plan: ShardPlan, done: WorkDone) -> None:
    for listener in _listeners:
        listener(plan, done)
