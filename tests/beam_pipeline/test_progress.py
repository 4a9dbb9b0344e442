import io
import json
import logging
import time

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline import progress as progress_module
from beam_pipeline.progress import Progress, count_files, files_line, progress_line, shown
from transforms.assign_shards import ShardPlan
from transforms.extraction_progress import ProgressCounters, WorkDone, listening

PLAN = ShardPlan(3, 10, 1000, "", np.empty(0, np.uint64))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def after(*work: tuple[float, WorkDone]) -> Progress:
    progress = Progress()
    for now, done in work:
        progress = progress.after(PLAN, done, now)
    return progress


def test_before_the_first_step_it_says_what_is_waited_for():
    assert progress_line(Progress(), 3, 0, 80) == "reading tasks, 0:03"
    begun = after((0, WorkDone()))
    assert progress_line(begun, 75, 0, 80) == "loading the model for 1,000 tokens, 1:15"


def test_speed_padding_and_time_left():
    progress = after((50, WorkDone(1, 100, 200)), (60, WorkDone(4, 400, 400)))
    assert progress_line(progress, 70, 60, 120) == (
        "[############------------]  50%, 500 of 1,000 tokens, 0:12 left, 40 tokens/s, 17% padding"
    )


def test_loading_and_compiling_do_not_count_as_speed():
    progress = after((500, WorkDone(1, 100, 100)))
    assert progress.tokens_per_second is None
    assert "left" not in progress_line(progress, 500, 501, 80)


def test_time_goes_by_between_steps():
    progress = after((50, WorkDone(1, 100, 100)), (60, WorkDone(4, 400, 400)))
    assert progress.seconds_left(60) == 12.5
    assert progress.seconds_left(65) == 7.5
    assert progress.seconds_left(100) == 0


def test_what_an_earlier_run_has_done_is_no_speed():
    progress = after(
        (1, WorkDone(5, 500)), (10, WorkDone(1, 100, 100)), (20, WorkDone(1, 100, 100))
    )
    assert progress.tokens_per_second == 10
    assert "700 of 1,000 tokens" in progress_line(progress, 20, 20, 80)
    assert "0% padding" in progress_line(progress, 20, 20, 120)


def test_at_the_end_nothing_is_left():
    progress = after((1, WorkDone(5, 500, 500)), (2, WorkDone(5, 500, 500)))
    line = progress_line(progress, 2, 2, 80)
    assert line.startswith("[########################] 100%, 1,000 of 1,000 tokens")
    assert "left" not in line


@pytest.mark.parametrize("width", [0, 1, 20, 32, 60, 200])
def test_it_fits_into_any_terminal(width):
    progress = after((50, WorkDone(1, 100, 200)), (60, WorkDone(4, 400, 400)))
    assert len(progress_line(progress, 70, 60, width)) <= width
    assert len(files_line(3, 9, 70, width)) <= width


def test_files_are_counted_where_workers_are_processes(tmp_path):
    assert count_files(str(tmp_path)) == (0, 0)
    run = {"plan": {"num_shards": 2}, "configuration": {"layers_extracted": [0, 7]}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert count_files(str(tmp_path)) == (0, 4)
    (tmp_path / "layer_7").mkdir()
    whole = tmp_path / "layer_7" / "activations-00001-of-00002.tfrecord"
    whole.touch()
    whole.with_name(whole.name + ".partial-0123456789abcdef").touch()
    assert count_files(str(tmp_path)) == (1, 4)
    assert files_line(1, 4, 61, 80) == "[######------------------]  25%, 1 of 4 files, 1:01"


@pytest.mark.parametrize(
    ("flags", "folder", "wanted", "stream"),
    [
        (["--runner=FnApiRunner"], "out", False, Terminal()),
        (["--runner=FnApiRunner"], "out", True, io.StringIO()),
        (["--runner=DataflowRunner"], "out", True, Terminal()),
        (["--direct_running_mode=multi_processing"], "gs://b/out", True, Terminal()),
    ],
    ids=["not wanted", "no terminal", "not local", "not countable"],
)  # fmt: skip
def test_where_nothing_is_shown(monkeypatch, flags, folder, wanted, stream):
    monkeypatch.setattr(progress_module, "REFRESH_SECONDS", 0.001)
    monkeypatch.setattr(progress_module, "FOLDER_SECONDS", 0.001)
    flags = ["--runner=FnApiRunner", *flags]
    with shown(PipelineOptions(flags), folder, wanted, stream):
        wait()
    assert stream.getvalue() == ""


def wait() -> None:
    """So that a line can be drawn."""
    time.sleep(0.05)


def test_a_log_line_gets_a_line_of_its_own(monkeypatch):
    monkeypatch.setattr(progress_module, "REFRESH_SECONDS", 0.001)
    stream = Terminal()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        with shown(PipelineOptions(["--runner=FnApiRunner"]), "out", True, stream):
            wait()
            logging.getLogger("other").warning("careful")
    finally:
        logging.getLogger().removeHandler(handler)
    assert "\r\x1b[Kcareful\n" in stream.getvalue()
    assert handler.filters == []


def test_an_error_ends_the_line(monkeypatch):
    monkeypatch.setattr(progress_module, "REFRESH_SECONDS", 0.001)
    stream = Terminal()
    with pytest.raises(ZeroDivisionError):
        show_and_fail(stream)
    assert stream.getvalue().endswith("\r\x1b[K")


def show_and_fail(stream: Terminal) -> None:
    with shown(PipelineOptions(["--runner=FnApiRunner"]), "out", True, stream):
        wait()
        raise ZeroDivisionError


def test_a_listener_hears_nothing_after_its_time():
    heard: list[WorkDone] = []
    with listening(lambda plan, done: heard.append(done)):
        pass
    ProgressCounters().begin(PLAN)
    assert heard == []
