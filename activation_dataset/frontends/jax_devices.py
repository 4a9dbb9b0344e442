"""Batches on JAX devices, sent there ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.reading.batches import Batches


@dataclass(frozen=True, eq=False)
class DeviceBatch:
    """A batch on a device.

    Attributes:
        values: jax.Array, as the values of `Batches`.
        numbers: [batch_size] int64 on the host, by which `dataset.locate` finds samples and tokens.
    """

    values: Any
    numbers: NDArray[np.int64]


class DeviceBatches:
    """Batches as jax.Arrays; the next ones are on their way while one is worked on.

        for batch in DeviceBatches(dataset.batches(10, 4096)):
            state = train_step(state, batch.values)

    Args:
        batches: where they come from.
        sharding: a jax.sharding.Sharding or a device for the values; None for JAX's default.
        ahead: batches that are sent before they are asked for.
    """

    def __init__(self, batches: Batches, sharding: Any = None, ahead: int = 2) -> None:
        if ahead < 1:
            raise ValueError(f"ahead is {ahead}, expected at least 1")
        self._batches, self._sharding, self._ahead = batches, sharding, ahead
        self._state = batches.state_dict()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[DeviceBatch]:
        """The rest of the epoch."""
        import jax

        self._batches.load_state_dict(self._state)
        sent: deque[tuple[DeviceBatch, dict[str, Any]]] = deque()
        for batch in self._batches:
            values = jax.device_put(batch.values, self._sharding)
            sent.append((DeviceBatch(values, batch.numbers), self._batches.state_dict()))
            if len(sent) > self._ahead:
                yield self._next(sent)
        while sent:
            yield self._next(sent)
        self._state = self._batches.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """What comes after the last batch that was given out; see `Batches`."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; see `Batches`."""
        self._batches.load_state_dict(state)
        self._state = self._batches.state_dict()

    def _next(self, sent: deque[tuple[DeviceBatch, dict[str, Any]]]) -> DeviceBatch:
        batch, self._state = sent.popleft()
        return batch
