import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials

from beam_pipeline.command import main, summary
from tests.activation_dataset.synthetic import write_dataset
from tests.conftest import ROOT

FLAGS = ["--model_path", "random:tiny", "--tasks_file", "tasks"]


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make every job end in this error."""

    def run_pipeline(*arguments):
        raise error

    monkeypatch.setattr("beam_pipeline.command.run_pipeline", run_pipeline)


def test_a_mistake_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]):
    assert main(["--model_path", "random:tiny", "--tasks_file", "absent.json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: --tasks_file 'absent.json'")
    assert err.count("\n") == 1


def test_a_bug_keeps_its_trace(monkeypatch: pytest.MonkeyPatch):
    fail_with(monkeypatch, KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        main(FLAGS)


ENGINE_ERROR = RuntimeError("Pipeline job-1 failed in state FAILED: SDK worker disconnected")


def test_a_failure_of_the_engine_is_one_line(monkeypatch, capsys, caplog):
    fail_with(monkeypatch, ENGINE_ERROR)
    assert main(FLAGS) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the engine ended the job in state FAILED: SDK worker disconn")
    assert error.count("\n") == 1
    assert not caplog.records
    assert main([*FLAGS, "--default_sdk_harness_log_level=DEBUG"]) == 2
    (found,) = caplog.records
    assert found.exc_info[1] is ENGINE_ERROR


def test_an_interruption_in_a_worker_is_one_line(monkeypatch, capsys):
    error = RuntimeError("KeyboardInterrupt [while running 'Extract']")
    error.__context__ = KeyboardInterrupt()
    fail_with(monkeypatch, error)
    assert main(FLAGS) == 130
    line = capsys.readouterr().err
    assert line == "interrupted; the same command resumes from the finished files\n"


def test_flags_that_beam_refuses_are_one_line(capsys, tmp_path: Path):
    write_dataset(tmp_path, [[3]])
    before = (tmp_path / "metadata.json").read_bytes()
    common = ["--model_path", "random:tiny", "--tasks_file", str(ROOT), "--overwrite"]
    assert main([*common, "--output_dir", str(tmp_path), "--runner=Nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: --runner=Nowhere: ")
    assert (tmp_path / "metadata.json").read_bytes() == before, "invalid flags remove no output"


def test_dataflow_without_credentials_is_one_line(capsys, monkeypatch, tmp_path: Path):
    for name in ("HOME", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    paths = ["--tasks_file=gs://bucket/tasks", "--output_dir=gs://bucket/out"]
    flags = ["--project=p", "--region=us-central1", "--temp_location=gs://bucket/temp"]
    assert main(["--model_path=random:tiny", *paths, "--runner=DataflowRunner", *flags]) == 2
    error = capsys.readouterr().err
    assert "no Google credentials" in error
    assert error.count("\n") == 1


def test_flags_that_dataflow_lacks_are_one_line(capsys, monkeypatch):
    monkeypatch.setattr("google.auth.default", lambda: (AnonymousCredentials(), None))
    paths = ["--tasks_file=gs://bucket/tasks", "--output_dir=gs://bucket/out"]
    assert main(["--model_path=random:tiny", *paths, "--runner=DataflowRunner"]) == 2
    assert capsys.readouterr().err.startswith("error: Beam refuses its flags: ")


def test_an_accelerator_without_dataflow_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("beam_pipeline.command.run_pipeline", lambda *arguments: None)
    common = ["--model_path", "random:tiny", "--tasks_file", str(ROOT)]
    assert main([*common, "--output_dir", str(tmp_path), "--accelerator=tpu-v5e-1"]) == 0
    assert "--accelerator=tpu-v5e-1" in caplog.text


def test_the_summary_is_for_a_person(tmp_path: Path):
    metadata = write_dataset(tmp_path, [[3, 4], [5]], rejected={"bad_cell": 2, "no_test_inputs": 1})
    run = dataclasses.replace(metadata.run, weights={"fingerprint": "", "random": True})
    text = summary(dataclasses.replace(metadata, run=run), "out", 2.0)
    for part in (
        "out: 3 samples, 12 tokens",
        "random:tiny (random weights), computed in bfloat16",
        "3 (10-12), 8 wide, pooling last, float32",
        "8 in 2 shards",
        "  read     6 items; 3 written, 3 rejected (2 bad_cell, 1 no_test_inputs)",
        "  read     3 samples; 3 written, 0 rejected",
        "2.0 s, 6 tokens/s",
    ):
        assert part in text
    resumed = summary(metadata, "out", 2.0, resumed=5)
    assert "tokens/s" not in resumed
    assert "left 5 files" in resumed
    assert "ops" not in text
    text = summary(dataclasses.replace(metadata, ops=("amx", "xla")), "out", 2.0)
    assert "ops      amx, xla" in text


@pytest.mark.parametrize(("flag", "status"), [("--help", 0), ("--unknown", 2)])
def test_the_module_is_a_command(flag: str, status: int):
    command = [sys.executable, "-m", "beam_pipeline", flag]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == status
    assert result.stderr == "" if status == 0 else result.stderr.startswith("error: ")
