from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from qwen.load_once import load_once

ROOT = Path(__file__).resolve().parents[2]
THREADS = 8

TOKENIZERS_AT_ONCE = f"""
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from qwen.source import open_model
at_once = Barrier({THREADS})
def load(_):
    at_once.wait()
    return open_model(sys.argv[1]).tokenizer()
with ThreadPoolExecutor({THREADS}) as threads:
    assert len(set(map(id, threads.map(load, range({THREADS}))))) == 1
"""


def test_threads_that_start_together_load_each_value_once() -> None:
    loads: Counter[str] = Counter()

    @load_once
    def load(name: str) -> object:
        loads[name] += 1
        time.sleep(0.02)
        return object()

    at_once = Barrier(THREADS)

    def ask(thread: int) -> object:
        at_once.wait()
        return load("ab"[thread % 2])

    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(ask, range(THREADS)))
    assert loads == {"a": 1, "b": 1}
    assert [value is found[0] for value in found] == [True, False] * (THREADS // 2)


def test_a_failure_is_not_kept() -> None:
    answers: Iterator[ValueError | int] = iter([ValueError("no answer"), 42])

    @load_once
    def load() -> int:
        answer = next(answers)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    with pytest.raises(ValueError, match="no answer"):
        load()
    assert load() == load() == 42


def test_threads_that_start_together_share_one_tokenizer() -> None:
    """A process of its own, because the first import of transformers is what two threads break."""
    command = [sys.executable, "-c", TOKENIZERS_AT_ONCE, "random:tiny"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
