import threading
import time
from io import BytesIO

import pytest

from transforms.background_writer import BackgroundWriter, Budget

BLOCK = bytes(1000)


class Slow(BytesIO):
    """Store that accepts nothing until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()

    def write(self, block) -> int:
        self.let.wait()
        return super().write(block)


def test_blocks_wait_in_bounded_memory_and_keep_their_order():
    budget, store, written = Budget(3000), Slow(), []
    writer = BackgroundWriter(store, lambda: None, budget)

    def write_all() -> None:
        for value in range(10):
            writer.write(bytes([value]) * 1000)
            written.append(value)

    caller = threading.Thread(target=write_all)
    caller.start()
    while len(written) < 3:
        time.sleep(0.001)
    assert (written, budget.used) == ([0, 1, 2], 3000)
    store.let.set()
    caller.join()
    writer.finish(lambda: None).result()
    assert store.getvalue() == b"".join(bytes([value]) * 1000 for value in range(10))
    assert budget.used == 0


def test_a_block_larger_than_the_budget_is_written():
    store = BytesIO()
    writer = BackgroundWriter(store, lambda: None, Budget(10))
    assert writer.write(BLOCK) == 1000
    writer.finish(lambda: None).result()
    assert store.getvalue() == BLOCK


def test_an_error_is_that_of_the_file_and_nothing_follows_it():
    budget, finished = Budget(3000), []

    def fail() -> None:
        raise OSError("gone")

    writer = BackgroundWriter(BytesIO(), fail, budget)
    writer.write(BLOCK)
    done = writer.finish(lambda: finished.append(1))
    with pytest.raises(OSError, match="gone"):
        done.result()
    assert (finished, budget.used) == ([], 0)


def test_queued_blocks_are_dropped_after_abandoning():
    budget, store = Budget(3000), BytesIO()

    def wait_until_abandoned() -> None:
        while not writer._abandoned:
            time.sleep(0.001)

    writer = BackgroundWriter(store, wait_until_abandoned, budget)
    writer.write(BLOCK)
    writer.write(BLOCK)
    writer.abandon()
    assert (len(store.getvalue()) <= 1000, budget.used) == (True, 0)
