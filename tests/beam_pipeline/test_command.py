import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from beam_pipeline.command import explained_by, is_news, main, summary
from beam_pipeline.config import ConfigError
from tests.activation_dataset.synthetic import write_dataset
from tests.conftest import ROOT
from transforms.whole_file import OutputError

WORKER_TRACE = """Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1512, in process
  File "qwen/programs.py", line 52, in make_mesh
    raise MeshError(
qwen.programs.MeshError: mesh_shape 4,1 needs 4 devices.

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "apache_beam/runners/worker/sdk_worker.py", line 310, in _execute
    response = task()
qwen.programs.MeshError: mesh_shape 4,1 needs 4 devices. [while running 'Extract/Extract']
"""
THEIR_TRACE = 'Traceback (most recent call last):\n  File "qwen/a.py"\nValueError: a bug in qwen.'


def test_an_error_of_ours_explains_itself():
    assert explained_by(ConfigError("--pooling: no")) == "--pooling: no"


def test_an_explanation_is_one_line():
    assert explained_by(ConfigError("first\n  second\n\nthird")) == "first second third"
    assert explained_by(ConfigError(r'is "a\n\nb" there')) == r'is "a\n\nb" there'


def test_the_outermost_error_of_ours_is_the_explanation():
    outer = ConfigError("what the user can do")
    outer.__cause__ = OutputError("cause")
    assert explained_by(outer) == "what the user can do"


def test_an_error_of_ours_is_found_behind_one_of_beams():
    outer = RuntimeError("the pipeline failed")
    outer.__context__ = ConfigError("cause")
    assert explained_by(outer) == "cause"


def test_an_error_of_ours_is_found_in_the_trace_of_another_process():
    assert explained_by(RuntimeError(WORKER_TRACE)) == "mesh_shape 4,1 needs 4 devices."


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        RuntimeError(THEIR_TRACE),
        RuntimeError("see qwen.programs.MeshError: not at the start of a line"),
    ],
)
def test_a_bug_is_not_explained_away(error: Exception):
    assert explained_by(error) is None


def record(message: str, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, None) if error else None
    return logging.LogRecord("apache_beam", logging.ERROR, "", 0, message, (), info)


def test_the_log_does_not_repeat_what_the_last_line_says():
    assert not is_news(record("failed", ConfigError("--pooling: no")))
    assert not is_news(record(f"Worker: severity: ERROR\n{WORKER_TRACE}"))
    assert not is_news(record("Original traceback is " + WORKER_TRACE.replace("\n", "\\n")))
    assert is_news(record("failed", ValueError("a bug")))
    assert is_news(record(f"Worker: severity: ERROR\n{THEIR_TRACE}"))
    assert is_news(record("layer_10/a.tfrecord is written again: cut short"))


def test_a_mistake_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]):
    assert main(["--model_path", "random:tiny", "--tasks_file", "absent.json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: --tasks_file 'absent.json': no such file.")
    assert err.count("\n") == 1


def test_a_bug_keeps_its_trace(monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments):
        raise KeyError("a bug")

    monkeypatch.setattr("beam_pipeline.command.run_pipeline", fail)
    with pytest.raises(KeyError, match="a bug"):
        main(["--model_path", "random:tiny", "--tasks_file", "tasks"])


def interrupted_in_a_worker() -> RuntimeError:
    error = RuntimeError("KeyboardInterrupt [while running 'Extract']")
    error.__context__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), interrupted_in_a_worker()])
def test_an_interruption_is_one_line(monkeypatch, capsys, error: BaseException):
    def stop(*arguments):
        raise error

    monkeypatch.setattr("beam_pipeline.command.run_pipeline", stop)
    assert main(["--model_path", "random:tiny", "--tasks_file", "tasks"]) == 130
    expected = "interrupted; the same command goes on from what is finished\n"
    assert capsys.readouterr().err == expected
    assert not is_news(record("KeyboardInterrupt", error))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runner=Nowhere"], "Beam refuses its flags: Unexpected pipeline runner: Nowhere."),
        (
            ["--runner=DataflowRunner"],
            "Beam refuses its flags: Pipeline has validations errors: Missing GCS path option: ",
        ),
    ],
)
def test_flags_that_beam_refuses_are_one_line(capsys, tmp_path: Path, flags, message: str):
    write_dataset(tmp_path, [[3]])
    before = (tmp_path / "metadata.json").read_bytes()
    common = ["--model_path", "random:tiny", "--tasks_file", str(ROOT), "--overwrite"]
    assert main([*common, "--output_dir", str(tmp_path), *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert (tmp_path / "metadata.json").read_bytes() == before, "nothing is removed for nothing"


def test_the_summary_is_for_a_person(tmp_path: Path):
    metadata = write_dataset(tmp_path, [[3, 4], [5]], rejected={"bad_cell": 2, "not_json": 1})
    run = dataclasses.replace(metadata.run, weights={"fingerprint": "", "random": True})
    text = summary(dataclasses.replace(metadata, run=run), "out", 2.0)
    for part in (
        "out: 3 samples, 12 tokens",
        "random:tiny (random weights)",
        "3 (10-12), 8 wide, pooling last, float32",
        "6 in 2 shards",
        "rejected 3; 2 bad_cell; 1 not_json",
        "2.0 s, 6 tokens/s",
    ):
        assert part in text


@pytest.mark.parametrize(("flag", "status"), [("--help", 0), ("--unknown", 2)])
def test_the_module_is_a_command(flag: str, status: int):
    command = [sys.executable, "-m", "beam_pipeline", flag]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == status
    assert result.stderr == "" if status == 0 else result.stderr.startswith("error: ")
