import subprocess
import sys

import pytest

from activation_dataset.__main__ import main
from activation_dataset.format import shard_file
from tests.activation_dataset.synthetic import write_dataset

BROKEN = shard_file(11, 0, 1)


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path, [[3, 4]])
    return tmp_path


def test_a_sound_dataset(dataset, capsys):
    assert main(["verify", str(dataset)]) == 0
    assert capsys.readouterr().out.startswith("sound: 4 files, 0.0 MB in ")
    assert main(["verify", str(dataset), "--records"]) == 0
    assert capsys.readouterr().out.endswith("every record decoded\n")


def test_a_broken_dataset(dataset, capsys):
    (dataset / BROKEN).write_bytes(b"short")
    (dataset / "metadata.json.partial-0123456789abcdef").write_bytes(b"")
    assert main(["verify", str(dataset)]) == 1
    output = capsys.readouterr()
    broken, partial = output.out.splitlines()
    assert broken.startswith(f"{BROKEN}: has 5 bytes")
    assert "run the same command again" in broken
    assert partial.endswith("delete it")
    assert output.err.startswith("2 problems in 4 files")


def test_a_damaged_or_missing_file_is_named_with_advice(dataset, capsys):
    report = ["report", str(dataset), "-o", str(dataset / "page.html")]
    (dataset / BROKEN).write_bytes(b"short")
    assert main(report) == 2
    error = capsys.readouterr().err
    assert f"cannot be reported on: {BROKEN}: record 0" in error
    assert f"verify {dataset}" in error
    (dataset / BROKEN).unlink()
    assert main(report) == 2
    assert f"{BROKEN} is missing" in (error := capsys.readouterr().err)
    assert f"verify {dataset}" in error


def test_a_full_report_refuses_a_file_of_another_layer(dataset, capsys):
    (dataset / BROKEN).write_bytes((dataset / shard_file(10, 0, 1)).read_bytes())
    page = dataset / "page.html"
    assert main(["report", str(dataset), "--full", "-o", str(page)]) == 2
    assert f"{BROKEN}: has CRC32C" in (error := capsys.readouterr().err)
    assert f"verify {dataset}" in error
    assert not page.exists()


def test_a_report_on_a_part_says_that_the_rest_was_not_checked(dataset, capsys, monkeypatch):
    monkeypatch.setattr("activation_dataset.reporting.survey.MAX_VECTORS", 1)
    monkeypatch.setattr("activation_dataset.reading.shards.CHUNK_BYTES", 1)
    report = ["report", str(dataset), "-o", str(dataset / "page.html")]
    assert main(report) == 0
    assert "read 1 of 2 vectors of each layer; " in (said := capsys.readouterr().out)
    assert "verify" in said
    assert main([*report, "--full"]) == 0
    assert capsys.readouterr().out.endswith("read 2 of 2 vectors of each layer\n")


@pytest.mark.parametrize("command", ["report", "verify"])
def test_a_missing_dataset_is_reported_in_one_line(tmp_path, capsys, command):
    missing = tmp_path / "nowhere"
    assert main([command, str(missing)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{missing} cannot be ")
    assert error.count("\n") == 1


def test_an_output_that_cannot_be_written(dataset, tmp_path, capsys):
    assert main(["report", str(dataset), "-o", str(tmp_path / "nowhere" / "page.html")]) == 2
    assert f"--output {tmp_path / 'nowhere' / 'page.html'}" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "value"), [("--samples", "0"), ("--seed", "-1")])
def test_a_wrong_value_is_named(dataset, capsys, flag, value):
    with pytest.raises(SystemExit):
        main(["certify", str(dataset), "--model_path", "m", flag, value])
    assert f"argument {flag}: " in capsys.readouterr().err


def test_as_a_program_without_the_libraries_of_the_job(dataset):
    """The command must not import Beam, JAX, TensorFlow, protobuf or torch."""
    (dataset / "sitecustomize.py").write_text(
        "import sys\n"
        "for name in ('apache_beam', 'jax', 'tensorflow', 'google.protobuf', 'torch'):\n"
        "    sys.modules[name] = None\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "activation_dataset", "verify", str(dataset)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{dataset}:."},
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("sound: ")
