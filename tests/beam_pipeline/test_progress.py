import contextlib
import io
import logging
import os
import sys

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline.progress import progress_bar
from transforms.assign_shards import ShardPlan
from transforms.extraction_progress import ProgressCounters, WorkDone

PLAN = ShardPlan(3, 10, 1000, "", np.empty(0, np.uint64))
LOCAL = PipelineOptions(["--runner=FnApiRunner"])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace stderr. This is not a fixture, because pytest replaces stderr after the fixtures."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_it_says_what_is_waited_for_then_what_is_done(monkeypatch):
    terminal = terminal_of(monkeypatch)
    work = ProgressCounters()
    with progress_bar(LOCAL, wanted=True):
        assert "reading inputs" in terminal.getvalue()
        work.begin(PLAN)
        assert terminal.getvalue().endswith("loading the model")
        work.step(PLAN, WorkDone(1, 100, 200))
        work.step(PLAN, WorkDone(4, 400, 400))
        shown = terminal.getvalue().rpartition("\r")[2]
        assert "500/1000 tokens" in shown
        assert "50%" in shown
        assert "tokens/s" in shown
        assert "17% padding" in shown
    assert terminal.getvalue().rpartition("\r")[2] == "", "the bar is gone"


def test_work_of_an_earlier_run_counts_as_done_but_not_for_the_speed(monkeypatch):
    terminal = terminal_of(monkeypatch)
    work = ProgressCounters()
    with progress_bar(LOCAL, wanted=True):
        work.resumed(PLAN, 5, 500)
        shown = terminal.getvalue().rpartition("\r")[2]
        assert "500/1000 tokens" in shown
        assert "?" in shown
        work.step(PLAN, WorkDone(1, 100, 100))
        work.resumed(PLAN, 4, 400)
        shown = terminal.getvalue().rpartition("\r")[2]
        assert "1000/1000 tokens" in shown
        assert "0% padding" in shown


@pytest.mark.parametrize(
    ("flags", "wanted", "stream"),
    [
        ([], False, Terminal),
        (["--runner=DataflowRunner"], True, Terminal),
        (["--direct_running_mode=multi_processing"], True, Terminal),
        ([], True, io.StringIO),
    ],
)
def test_no_bar(monkeypatch, flags: list[str], wanted: bool, stream):
    terminal = stream()
    monkeypatch.setattr(sys, "stderr", terminal)
    options = PipelineOptions(["--runner=FnApiRunner", *flags])
    with progress_bar(options, wanted):
        ProgressCounters().begin(PLAN)
    assert terminal.getvalue() == ""


def test_a_terminal_of_unknown_size_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.openpty()  # Its size is 0 x 0.
    with open(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_bar(LOCAL, wanted=True):
            ProgressCounters().step(PLAN, WorkDone(5, 500, 500))
    assert b"500/1000 tokens" in everything_shown(reader)


def everything_shown(reader: int) -> bytes:
    """Read a pseudoterminal whose other end is closed. Any one read may return only a part."""
    shown = b""
    with open(reader, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        while part := screen.read(4096):
            shown += part
    return shown


def test_a_log_line_gets_a_line_of_its_own(monkeypatch):
    terminal = terminal_of(monkeypatch)
    handler = logging.StreamHandler(terminal)
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        with progress_bar(LOCAL, wanted=True):
            logging.getLogger("other").warning("careful")
            logging.getLogger("other").warning("secret")
    finally:
        logging.getLogger().removeHandler(handler)
    assert "\rcareful\n" in terminal.getvalue()
    assert "secret" not in terminal.getvalue()
