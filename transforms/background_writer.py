"""Writing in the background: a thread for each open file, and bounded memory in the process.

The caller of `write` waits only while the blocks that wait for the store are as many bytes as they
may be. The thread of a file writes its blocks in order and commits the file after the last one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import BinaryIO

from activation_dataset.checksum import Buffer

WAITING_BYTES = 256 << 20
"""Bytes that may wait for the store in a process, whatever the number of its files and threads."""

_PIECE_BYTES = 1 << 20


class Budget:
    """A number of bytes that threads share."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until there are as many bytes; more than the limit are had when all are free."""
        with self._changed:
            self._changed.wait_for(lambda: self.used == 0 or self.used + size <= self.limit)
            self.used += size

    def give_back(self, size: int) -> None:
        """Let others have these bytes."""
        with self._changed:
            self.used -= size
            self._changed.notify_all()


PROCESS_BUDGET = Budget(WAITING_BYTES)


class BackgroundWriter:
    """The blocks of one file, which a thread writes to a stream.

    An error of the stream is raised by the next call of `write`, or by the future of `finish`.
    After an error nothing else is written. End the thread with `finish` or `abandon`.
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
        # A daemon: a process that is told to end does not wait for the store.
        self._thread = threading.Thread(target=self._run, name="background-writer", daemon=True)
        self._thread.start()

    def write(self, block: Buffer) -> int:
        """Copy a block and let the thread write it; wait while too many bytes are waiting."""
        if self._error is not None:
            raise self._error
        view = memoryview(block).cast("B")
        for start in range(0, len(view), _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            self._budget.take(len(piece))
            self._queue.put(bytes(piece))
        return len(view)

    def finish(self, last: Callable[[], None]) -> Future[None]:
        """Let the thread call `last` after the last block, and end; return its outcome."""
        self._queue.put(last)
        return self._done

    def abandon(self) -> None:
        """End the thread without writing what waits, and wait for its end."""
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
