import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from activation_dataset import ActivationDataset
from activation_dataset.__main__ import main
from activation_dataset.exporters.safetensors_file import Tensor, write_tensors
from tests.activation_dataset.synthetic import write_dataset

SHARDS = [[3, 40, 1, 17], [7, 60], [12, 2]]
HIDDEN = 8


@pytest.fixture(params=["float32", "bfloat16"])
def path(request, tmp_path):
    write_dataset(tmp_path / "dataset", SHARDS, "none", request.param, HIDDEN)
    return tmp_path / "dataset"


def values_of(path, layer):
    return np.concatenate([block.values for block in list(ActivationDataset(path).blocks(layer))])


def export(path, *arguments):
    out = path.parent / "out"
    return main(["export", str(path), str(out), *arguments]), out


def test_safetensors_hold_all_vectors_as_they_are_stored(path, capsys):
    status, out = export(path, "--to", "safetensors", "--layer", "11")
    assert status == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"142 vectors of layer 11 in {out}\n")
    dataset = ActivationDataset(path)
    values, places = values_of(path, 11), dataset.locate(np.arange(142))
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [each["sample_id"] for each in samples] == [r.sample_id for r in dataset.records(11)]
    start = 0
    for file in sorted(out.glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            assert tensors.metadata()["hook_name"] == "blocks.11.hook_resid_post"
            found = tensors.get_tensor("activations")
            part = slice(start, start + len(found))
            narrow = dataset.metadata.run.storage_dtype == "bfloat16"
            assert found.dtype == (ml_dtypes.bfloat16 if narrow else np.float32)
            np.testing.assert_array_equal(found.astype(np.float32), values[part])
            for name in ("samples", "positions", "token_ids"):
                column = tensors.get_tensor(name)
                np.testing.assert_array_equal(column, getattr(places, name)[part])
        start += len(found)
    assert start == 142


def test_batches_for_dictionary_learning(path, capsys):
    arguments = [
        "--to",
        "dictionary_learning",
        "--layer",
        "12",
        "--batch_size",
        "20",
        "--seed",
        "3",
    ]
    status, out = export(path, *arguments)
    assert status == 0
    assert "140 vectors of layer 12" in (printed := capsys.readouterr().out)
    assert "2 left out" in printed
    (file,) = out.glob("*.safetensors")
    with safe_open(file, "np") as tensors:
        found = tensors.get_tensor("activations")
    assert (found.shape, found.dtype) == ((7, 20, HIDDEN), np.float32)
    values = values_of(path, 12)
    for rows, batch in zip(found, ActivationDataset(path).batches(12, 20, seed=3), strict=True):
        np.testing.assert_array_equal(rows, values[batch.numbers])


def test_several_files_of_batches(path, monkeypatch):
    monkeypatch.setattr(
        "activation_dataset.exporters.dictionary_learning._FILE_BYTES", 3 * 20 * HIDDEN * 4
    )
    _, out = export(path, "--to", "dictionary_learning", "--layer", "10", "--batch_size", "20")
    names = [file.name for file in sorted(out.glob("*"))]
    assert names == [f"batches-0000{n}-of-00003.safetensors" for n in range(3)]
    lengths = []
    for file in sorted(out.glob("*")):
        with safe_open(file, "np") as tensors:
            lengths.append(len(tensors.get_tensor("activations")))
    assert lengths == [3, 3, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "safetensors", "--layer", "9"], "no layer 9, only (10, 11, 12)"),
        (
            ["--to", "safetensors", "--layer", "10", "--seed", "1"],
            "--seed is for --to dictionary_l",
        ),
        (
            ["--to", "dictionary_learning", "--layer", "10"],
            "142 vectors, too few for a batch of 40",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(path, arguments, message, capsys):
    status, out = export(path, *arguments)
    assert status == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "dataset cannot be exported: " in error
    assert message in error
    assert not out.exists()


def test_nothing_is_overwritten(path, capsys):
    (path.parent / "out").mkdir()
    assert export(path, "--to", "safetensors", "--layer", "10")[0] == 2
    assert "out exists already: name a folder that does not" in capsys.readouterr().err


def test_a_damaged_dataset_leaves_no_export(path, capsys):
    file = path / "layer_10/activations-00001-of-00003.tfrecord"
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    status, out = export(path, "--to", "safetensors", "--layer", "10")
    assert status == 2
    assert "the CRC of the data does not match" in capsys.readouterr().err
    assert [each.name for each in out.parent.iterdir()] == ["dataset"]


def test_pieces_that_do_not_add_up_are_an_error(tmp_path: Path):
    tensor = Tensor("x", np.dtype(np.float32), (2, 3), [np.zeros((1, 3), np.float32)])
    with open(tmp_path / "file", "wb") as stream, pytest.raises(ValueError, match="x has 12 bytes"):
        write_tensors(stream, [tensor], {})
