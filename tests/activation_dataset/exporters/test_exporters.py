import json
import re
import shutil
import sys
from argparse import ArgumentParser

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load

from activation_dataset import ActivationDataset, DatasetError
from activation_dataset.export import add_arguments, run
from activation_dataset.exporters import ExportError, safetensors
from activation_dataset.sites import Site
from tests.activation_dataset.synthetic import write_dataset

SHARDS = [[3, 40, 1, 17], [7, 60], [12, 2]]
HIDDEN = 8


@pytest.fixture(params=["float32", "bfloat16", "int8"])
def path(request, tmp_path):
    write_dataset(tmp_path / "dataset", SHARDS, "none", request.param, HIDDEN)
    return tmp_path / "dataset"


def values_of(path, layer):
    return np.concatenate([block.values for block in list(ActivationDataset(path).blocks(layer))])


def export(path, *arguments):
    """Run the command and return the folder that it writes."""
    parser = ArgumentParser()
    add_arguments(parser)
    out = path.parent / "out"
    assert run(parser.parse_args([str(path), str(out), *arguments])) == 0
    return out


def test_safetensors_hold_all_vectors_as_they_are_stored(path, capsys, monkeypatch):
    monkeypatch.setattr("activation_dataset.exporters.FILE_BYTES", 50 * HIDDEN * 4)
    out = export(path, "--to", "safetensors", "--layer", "11")
    printed = capsys.readouterr().out
    assert printed.startswith(f"142 vectors of layer 11 in {out}\n")
    dataset = ActivationDataset(path)
    values, places = values_of(path, 11), dataset.locate(np.arange(142))
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [each["sample_id"] for each in samples] == [r.sample_id for r in dataset.records(11)]
    start = 0
    assert len(list(out.glob("*.safetensors"))) in (2, 3)
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


def test_batches_for_dictionary_learning(path, capsys, monkeypatch):
    monkeypatch.setattr("activation_dataset.exporters.FILE_BYTES", 3 * 20 * HIDDEN * 4)
    options = ["--layer", "12", "--batch_size", "20", "--seed", "3"]
    out = export(path, "--to", "dictionary_learning", *options)
    assert "140 vectors of layer 12" in (printed := capsys.readouterr().out)
    assert "2 left out" in printed
    files = sorted(out.glob("*"))
    assert [file.name for file in files] == [
        f"layer_12-0000{n}-of-00003.safetensors" for n in (0, 1, 2)
    ]
    found = []
    for file in files:
        with safe_open(file, "np") as tensors:
            found += list(tensors.get_tensor("activations"))
    values = values_of(path, 12)
    for rows, batch in zip(found, ActivationDataset(path).batches(12, 20, seed=3), strict=True):
        np.testing.assert_array_equal(rows, values[batch.numbers])


@pytest.mark.parametrize("to", ["safetensors", "dictionary_learning"])
def test_several_sites_have_the_files_of_each_alone(tmp_path, to):
    widths: dict[Site, int] = {"blocks.11.hook_mlp_out": 24}
    write_dataset(
        *(tmp_path / "dataset", SHARDS, "none"),
        layers=(11,),
        hook_points=("mlp_out", "resid_post"),
        widths=widths,
    )
    options = ["--batch_size", "20"] if to == "dictionary_learning" else []
    sites = ["11", "blocks.11.hook_mlp_out"]
    together = export(tmp_path / "dataset", "--to", to, "--layer", *sites, *options)
    together.rename(tmp_path / "together")
    names = set()
    for site in sites:
        alone = export(tmp_path / "dataset", "--to", to, "--layer", site, *options)
        for file in alone.iterdir():
            names.add(file.name)
            other = tmp_path / "together" / file.name
            if file.suffix == ".jsonl":
                assert other.read_bytes() == file.read_bytes()
                continue
            found, expected = load(other.read_bytes()), load(file.read_bytes())
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[name], expected[name]) for name in found)
        shutil.rmtree(alone)
    assert {file.name for file in (tmp_path / "together").iterdir()} == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "safetensors", "--layer", "9"], "--layer 9 is not in the dataset"),
        (["--to", "safetensors", "--layer", "10", "--seed", "1"], "--seed needs --to dictionary"),
        (["--to", "dictionary_learning", "--layer", "10"], "142 vectors, too few"),
        (["--to", "sae_lens", "--layer", "10", "--context_size", "143"], "expected 1 to 142"),
    ],
)
def test_a_request_that_does_not_fit(path, arguments, message):
    with pytest.raises(ExportError, match=re.escape(message)):
        export(path, *arguments)
    assert not (path.parent / "out").exists()


def test_nothing_is_overwritten(path):
    (path.parent / "out").mkdir()
    with pytest.raises(ExportError, match="out already exists"):
        export(path, "--to", "safetensors", "--layer", "10")


DAMAGED = "layer_10/activations-00001-of-00003.tfrecord"


def flipped(path, folder):
    content = bytearray((path / DAMAGED).read_bytes())
    content[200] ^= 1
    return DAMAGED, bytes(content)


def of_another_layer(path, folder):
    return DAMAGED, (path / DAMAGED.replace("10", "11")).read_bytes()


def of_other_prompts(path, folder):
    write_dataset(folder / "other", SHARDS, "none", hidden=HIDDEN, seeds=[3, 4, 5])
    name = "prompts/prompts-00001-of-00003.tfrecord"
    return name, (folder / "other" / name).read_bytes()


def missing(path, folder):
    return DAMAGED, None


@pytest.mark.parametrize("to", ["safetensors", "dictionary_learning"])
@pytest.mark.parametrize("change", [flipped, of_another_layer, of_other_prompts, missing])
def test_a_file_that_is_not_the_listed_one_leaves_no_export(tmp_path_factory, tmp_path, to, change):
    path = tmp_path / "dataset"
    write_dataset(path, SHARDS, "none", "bfloat16", HIDDEN)
    name, content = change(path, tmp_path_factory.mktemp("other"))
    (path / name).unlink()
    if content is not None:
        (path / name).write_bytes(content)
    options = ["--batch_size", "20"] if to == "dictionary_learning" else []
    with pytest.raises(DatasetError, match=f"^{name}.*verify {path}"):
        export(path, "--to", to, "--layer", "12", "10", *options)
    assert [each.name for each in path.parent.iterdir()] == ["dataset"]


def test_a_file_of_another_layer_that_is_not_exported_is_no_obstacle(path):
    name, content = of_another_layer(path, path)
    (path / name).write_bytes(content)
    export(path, "--to", "safetensors", "--layer", "11")


def test_a_file_that_changes_after_the_check_leaves_no_export(path, monkeypatch):
    name, content = of_another_layer(path, path)
    save = safetensors._save

    def change_and_save(*arguments):
        save(*arguments)
        (path / name).write_bytes(content)

    monkeypatch.setattr(safetensors, "_save", change_and_save)
    with pytest.raises(DatasetError, match=f"{name} was changed"):
        export(path, "--to", "safetensors", "--layer", "10")
    assert [each.name for each in path.parent.iterdir()] == ["dataset"]


@pytest.mark.parametrize(("to", "library"), [("sae_lens", "datasets"), ("safetensors",) * 2])
def test_a_missing_library_is_named(path, monkeypatch, to, library):
    for module in (library, "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {library}"):
        export(path, "--to", to, "--layer", "10", *["--context_size", "9"][: 2 * (to != library)])
    assert [each.name for each in path.parent.iterdir()] == ["dataset"]
