import subprocess
import sys
import threading

import grpc
import pytest

from beam_pipeline.lost_worker import ends_with_its_workers
from tests.conftest import ROOT


def raised_in_a_thread(error: Exception) -> None:
    def work() -> None:
        raise error

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_other_threads_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    seen: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    with ends_with_its_workers():
        raised_in_a_thread(ValueError("another"))
        raised_in_a_thread(grpc.RpcError())
    raised_in_a_thread(RuntimeError("Worker subprocess exited with return code 137"))
    assert [str(each.exc_value) for each in seen] == [
        "another",
        "Worker subprocess exited with return code 137",
    ]


def test_a_channel_that_breaks_says_nothing(monkeypatch: pytest.MonkeyPatch):
    seen: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    with grpc.insecure_channel("localhost:1") as channel:
        pass
    with pytest.raises(ValueError, match="closed") as raised:
        channel.unary_unary("/any")(b"")
    with ends_with_its_workers():
        raised_in_a_thread(raised.value.with_traceback(raised.tb.tb_next))
    assert not seen


def test_a_job_that_would_wait_forever_ends():
    program = (
        "import threading, time\n"
        "from beam_pipeline import lost_worker\n"
        "lost_worker.GRACE_SECONDS = 0.1\n"
        "def work(): raise RuntimeError('Worker subprocess exited with return code -9')\n"
        "with lost_worker.ends_with_its_workers():\n"
        "    threading.Thread(target=work).start()\n"
        "    time.sleep(300)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: a worker process died (status -9): ")
    assert "same command again" in result.stderr
    assert result.stderr.count("\n") == 1
