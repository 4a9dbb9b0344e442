"""Position in a stream of batches, shared by a process and the workers of its loaders."""

from __future__ import annotations

import os
import time
from dataclasses import astuple
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.reading.batches import Position

SIZE = 12
"""Number of int64 values of the shared memory."""

_PATIENCE_S = 60.0


class SharedPosition:
    """Position at which the next iteration starts.

    The main process does not tell the workers of a loader when an iteration begins. Worker 0 takes
    the position and moves it to the next epoch. The other workers wait for worker 0.

    Args:
        memory: [SIZE] int64, shared by all processes; initially zeros.
    """

    def __init__(self, memory: NDArray[np.int64]) -> None:
        self._next, self._begun = memory[:4], memory[4:8]
        self._began, self._owner = memory[8:9], memory[9:]
        self._turn = 0

    def get(self) -> Position:
        """Return the current position."""
        return Position(*self._next.tolist())

    def set(self, position: Position) -> None:
        """Move to a position that this process knows."""
        self._next[:] = astuple(position)[:4]
        self._began[:] = 0

    def moved_by_workers(self) -> bool:
        """Return True if workers began an iteration after the last call of `set`."""
        return bool(self._began[0])

    def begin(self, worker: Any, loaded: Position | None) -> Position:
        """Begin an iteration in a worker, and return its position, the same in all workers.

        Args:
            worker: the worker's `torch.utils.data.WorkerInfo`.
            loaded: position that this worker loaded and continues at; None if it loaded none.

        Raises:
            RuntimeError: if worker 0 did not begin the same iteration.
        """
        self._turn += 1
        seed = worker.seed - worker.id  # the same in all workers of a loader
        if worker.id == 0:
            position = loaded or self.get()
            self._owner[0] = 0  # Other workers must not read while values change.
            self._begun[:] = astuple(position)[:4]
            self._next[:] = position.epoch + 1, 0, 0, 0
            self._began[:] = 1
            self._owner[1:] = self._turn, seed
            self._owner[0] = os.getpid()
            return position
        if loaded is not None:
            return loaded
        patience = time.monotonic() + _PATIENCE_S
        while time.monotonic() < patience:
            process, turn, owner = self._owner.tolist()
            # The process id of worker 0 distinguishes loaders with the same seed. If a loop ended
            # early, worker 0 can be one turn ahead, and nobody takes this worker's batches.
            if (
                process
                and owner == seed
                and turn >= self._turn
                and os.path.exists(f"/proc/{process}")
            ):
                return Position(*self._begun.tolist())
            time.sleep(0.005)
        raise RuntimeError(
            "worker 0 did not begin this iteration: iterate over one loader of a dataset at a time"
        )
