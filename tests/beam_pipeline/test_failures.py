"""A user or engine error is one line; a bug keeps its traceback."""

import logging
from pathlib import Path

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.prism_runner import PrismRunner

from beam_pipeline.config import ConfigError
from beam_pipeline.failures import explained_by, is_news, was_refused
from transforms.commit_run import NoSamplesError
from transforms.storage import OutputError

WORKER_TRACE = """Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1512, in process
  File "qwen/mesh.py", line 52, in make_mesh
    raise MeshError(
qwen.mesh.MeshError: mesh_shape 4,1 needs 4 devices.

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "apache_beam/runners/worker/sdk_worker.py", line 310, in _execute
    response = task()
qwen.mesh.MeshError: mesh_shape 4,1 needs 4 devices. [while running 'Extract/Extract']
"""
REFUSED_TRACE = """Traceback (most recent call last):
  File "transforms/commit_run.py", line 230, in check_samples
    raise TooManyRejectedError(
transforms.commit_run.TooManyRejectedError: 2 rejected, --max_rejected allows 1
"""
THEIR_TRACE = 'Traceback (most recent call last):\n  File "qwen/a.py"\nValueError: a bug in qwen.'

FLINK_TRACE = """java.util.concurrent.ExecutionException: job 5 failed
\tat org.apache.flink.runtime.Foo.bar(Foo.java:1)
Caused by: org.apache.flink.runtime.JobException: recovery is suppressed
\tat org.apache.flink.runtime.Foo.bar(Foo.java:2)
Caused by: java.io.IOException: Insufficient number of network buffers
\t... 5 more
"""


def failed(reason: str, state: str = "FAILED") -> RuntimeError:
    return RuntimeError(f"Pipeline job-001 failed in state {state}: {reason}")


def test_an_error_of_ours_explains_itself_in_one_line():
    assert explained_by(ConfigError("first\n  second\n\nthird")) == "first second third"
    assert explained_by(ConfigError(r'is "a\n\nb" there')) == r'is "a\n\nb" there'


def test_the_outermost_error_of_ours_is_the_explanation():
    beams, ours = RuntimeError("the pipeline failed"), ConfigError("what the user can do")
    beams.__context__, ours.__cause__ = ours, OutputError("cause")
    assert explained_by(beams) == "what the user can do"


def test_a_refused_plan_is_told_from_other_failures():
    here, there = RuntimeError("the pipeline failed"), RuntimeError("bundle failed")
    here.__context__ = NoSamplesError("no sample is left")
    there.__cause__ = failed(REFUSED_TRACE)
    assert was_refused(here)
    assert was_refused(there)
    for error in (failed(WORKER_TRACE), OutputError("transforms.commit_run: disk full")):
        assert not was_refused(error)


@pytest.mark.parametrize("error", [RuntimeError(WORKER_TRACE), failed(WORKER_TRACE)])
def test_an_error_of_ours_is_found_in_the_trace_of_another_process(error: Exception):
    assert explained_by(error) == "mesh_shape 4,1 needs 4 devices."


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        RuntimeError(THEIR_TRACE),
        failed(THEIR_TRACE),
        RuntimeError("see qwen.mesh.MeshError: not at the start of a line"),
    ],
)
def test_a_bug_is_not_explained_away(error: Exception):
    assert explained_by(error) is None


class Unavailable(grpc.RpcError, grpc.Call):
    def details(self) -> str:
        return "failed to connect to all addresses"


Unavailable.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (failed("SDK worker disconnected\n"), ["state FAILED: SDK worker disconnected."]),
        (failed("unknown error", "CANCELLED"), ["state CANCELLED"]),
        (failed(FLINK_TRACE), ["job 5 failed Caused by: java.io.IOException: Insufficient numb"]),
        (
            RuntimeError("Dataflow pipeline failed. State: FAILED, Error:\nWorkflow failed."),
            ["state FAILED: Workflow failed."],
        ),
        (Unavailable(), ["the engine does not answer: failed to connect"]),
        (RuntimeError("Channel closed prematurely."), ["a worker process died: it was killed"]),
    ],
)
def test_a_failure_of_the_engine_is_one_line_with_the_remedy(error: Exception, parts: list[str]):
    line = explained_by(error)
    assert line
    assert "\n" not in line
    for part in [*parts, "same command again"]:
        assert part in line


def test_an_engine_that_cannot_be_started_is_one_line(tmp_path: Path):
    options = PipelineOptions([f"--prism_location={tmp_path / 'missing'}"])
    with pytest.raises(ValueError, match="missing") as raised:
        PrismRunner().run_pipeline(beam.Pipeline(), options)
    line = explained_by(raised.value)
    assert line
    assert str(tmp_path / "missing") in line
    assert "same command again" in line


def test_a_bug_in_a_step_of_a_local_run_keeps_its_trace():
    with pytest.raises(ZeroDivisionError) as raised, beam.Pipeline(runner="FnApiRunner") as job:
        _ = job | beam.Create([0]) | beam.Map(lambda number: 1 // number)
    assert explained_by(raised.value) is None


def record(message: str, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, None) if error else None
    return logging.LogRecord("apache_beam", logging.ERROR, "", 0, message, (), info)


def test_the_log_does_not_repeat_the_last_line():
    assert not is_news(record("failed", ConfigError("--pooling: no")))
    assert not is_news(record("KeyboardInterrupt", KeyboardInterrupt()))
    assert not is_news(record(f"Worker: severity: ERROR\n{WORKER_TRACE}"))
    assert not is_news(record("Original traceback is " + WORKER_TRACE.replace("\n", "\\n")))
    assert is_news(record("failed", ValueError("a bug")))
    assert is_news(record(f"Worker: severity: ERROR\n{THEIR_TRACE}"))
    assert is_news(record("layer_10/a.tfrecord is written again: cut short"))
