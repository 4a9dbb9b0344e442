"""Background writes with one thread for each open file and bounded memory in the process.

`write` blocks only while the queued blocks fill their memory budget. The thread of a file writes
its blocks in order and commits the file after the last one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import BinaryIO

from activation_dataset.checksum import Buffer

WAITING_BYTES = 256 << 20
"""Bytes that a process may queue for the store, over all its files and threads."""

_PIECE_BYTES = 1 << 20


class Budget:
    """A number of bytes that threads share."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait for this many free bytes; a block larger than the limit waits for all bytes."""
        with self._changed:
            self._changed.wait_for(lambda: self.used == 0 or self.used + size <= self.limit)
            self.used += size

    def give_back(self, size: int) -> None:
        """Free these bytes."""
        with self._changed:
            self.used -= size
            self._changed.notify_all()


PROCESS_BUDGET = Budget(WAITING_BYTES)


class BackgroundWriter:
    """The blocks of one file, which a thread writes to a stream.

    The next call of `write`, or the future of `finish`, raises an error of the stream. The thread
    writes nothing after an error. End the thread with `finish` or `abandon`.
    """

    def __init__(
        self, stream: BinaryIO, after_write: Callable[[], None], budget: Budget = PROCESS_BUDGET
    ) -> None:
        """Start the thread, which calls `after_write` after each piece."""
        self._stream, self._after_write, self._budget = stream, after_write, budget
        self._queue: queue.SimpleQueue[bytes | Callable[[], None]] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._abandoned = False
        self._done: Future[None] = Future()
        # A daemon thread, so that a process that must end does not wait for the store.
        self._thread = threading.Thread(target=self._run, name="background-writer", daemon=True)
        self._thread.start()

    def write(self, block: Buffer) -> int:
        """Queue a copy of a block; wait while the queue is full."""
        if self._error is not None:
            raise self._error
        view = memoryview(block).cast("B")
        for start in range(0, len(view), _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            self._budget.take(len(piece))
            self._queue.put(bytes(piece))
        return len(view)

    def finish(self, last: Callable[[], None]) -> Future[None]:
        """Make the thread call `last` after the last block, and return the future result."""
        self._queue.put(last)
        return self._done

    def abandon(self) -> None:
        """Drop the queue, and wait until the thread ends."""
        self._abandoned = True
        self._queue.put(lambda: None)
        self._thread.join()

    def _run(self) -> None:
        while isinstance(item := self._queue.get(), bytes):
            try:
                if self._error is None and not self._abandoned:
                    self._write(item)
            except BaseException as error:
                self._error = error
            finally:
                self._budget.give_back(len(item))
        try:
            if self._error is not None:
                raise self._error
            item()
        except BaseException as error:
            self._done.set_exception(error)
        else:
            self._done.set_result(None)

    def _write(self, piece: bytes) -> None:
        written = self._stream.write(piece)
        if written is not None and written != len(piece):
            raise OSError(f"only {written} of {len(piece)} bytes were written")
        self._after_write()
