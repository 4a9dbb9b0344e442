"""Test that every command ends without a traceback if the reader of its output closes the pipe."""

import os
import subprocess
import sys

import pytest

from activation_dataset.closed_pipe import until_closed
from tests.activation_dataset.synthetic import write_dataset

JOB = ("--model_path", "random:tiny", "--tasks_file", "examples/tasks/*.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dataset")
    write_dataset(path, [[3, 4]])
    return path


def run_into_closed_pipe(*arguments):
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes) as closed:
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )


@pytest.mark.parametrize(
    "arguments",
    [
        ("activation_dataset", "inspect", "DATASET"),
        ("activation_dataset", "verify", "DATASET"),
        ("activation_dataset", "--help"),
        ("beam_pipeline", "--help"),
        ("beam_pipeline", "plan", *JOB, "--output_dir", "OUT"),
        ("beam_pipeline", *JOB, "--output_dir", "OUT", "--layers_to_extract", "3"),
        ("examples.train_sae", "--help"),
        ("examples.own_pipeline", "--tasks_file", "examples/tasks/fall.json"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_output_that_nobody_reads_leaves_no_trace(folder, tmp_path, arguments):
    places = {"DATASET": folder, "OUT": tmp_path / "out"}
    run = run_into_closed_pipe(*(places.get(each, each) for each in arguments))
    assert run.returncode == 141
    assert "Traceback" not in run.stderr
    assert "BrokenPipe" not in run.stderr


def test_another_broken_pipe_is_an_error(monkeypatch):
    def command():
        raise BrokenPipeError("a connection")

    with open(os.devnull) as opened:
        monkeypatch.setattr("sys.stdout", opened)
        with pytest.raises(BrokenPipeError):
            until_closed(command)
