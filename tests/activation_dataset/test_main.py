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
    output = capsys.readouterr()
    assert output.out.startswith("sound: 4 files, 0.0 MB in ")
    assert main(["verify", str(dataset), "--repair-list"]) == 0
    assert capsys.readouterr().out == ""


def test_a_broken_dataset(dataset, capsys):
    (dataset / BROKEN).write_bytes(b"short")
    (dataset / "metadata.json.partial-0123456789abcdef").write_bytes(b"")
    assert main(["verify", str(dataset)]) == 1
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        f"{BROKEN}: 1 records, expected 2: run the same command again, which redoes it",
        f"{BROKEN}: record 0 at byte 0: the file ends 5 bytes into the 12-byte header: "
        "run the same command again, which redoes it",
        "metadata.json.partial-0123456789abcdef: left behind by a writer that was interrupted: "
        "delete it",
    ]
    assert output.err.startswith("3 problems in 4 files")
    assert main(["verify", str(dataset), "--repair-list"]) == 1
    assert capsys.readouterr().out == f"{BROKEN}\n"


def test_a_damaged_or_missing_file_is_named_and_what_to_do_is_said(dataset, capsys):
    (dataset / BROKEN).write_bytes(b"short")
    assert main(["inspect", str(dataset), "--full"]) == 2
    error = capsys.readouterr().err
    assert f"cannot be inspected: {BROKEN}: record 0 at byte 0" in error
    assert error.endswith("running the same command of the job again writes that again\n")
    (dataset / BROKEN).unlink()
    assert main(["inspect", str(dataset), "--full"]) == 2
    error = capsys.readouterr().err
    assert f"{dataset / BROKEN}'; python -m activation_dataset verify {dataset} lists" in error


def test_an_output_that_cannot_be_written(dataset, tmp_path, capsys):
    assert main(["report", str(dataset), "-o", str(tmp_path / "nowhere" / "page.html")]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"page.html: there is no folder {tmp_path / 'nowhere'}\n")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--layer", "ten", "'ten' is neither a layer's number nor"),
        ("--batch_size", "0", "expected a whole number of at least 1, got '0'"),
        ("--context_size", "-1", "expected a whole number of at least 1, got '-1'"),
        ("--seed", "-1", "expected a whole number of at least 0, got '-1'"),
    ],
)
def test_a_wrong_value_is_said(dataset, capsys, flag, value, message):
    command = ["export", str(dataset), "out", "--to", "dictionary_learning", "--layer", "10"]
    with pytest.raises(SystemExit):
        main([*command, flag, value])
    assert f"argument {flag}: {message}" in capsys.readouterr().err


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "nowhere cannot be verified: " in error
    assert "No such file or directory" in error
    assert main(["verify", "nope://nowhere"]) == 2


def test_as_a_program_without_the_libraries_of_the_job(dataset):
    """With several processes, and with Beam, JAX, TensorFlow and protobuf out of reach."""
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
