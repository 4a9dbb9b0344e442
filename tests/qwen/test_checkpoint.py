from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from qwen.checkpoint import (
    INDEX_FILE,
    SINGLE_FILE,
    CheckpointError,
    CheckpointFolder,
    RandomWeights,
    check_weights,
)
from qwen.config import PRESETS
from qwen.source import open_model
from tests.qwen.checkpoints import SMALL, varied_weights, write_checkpoint

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(5).astype(ml_dtypes.bfloat16),
    "scalar": np.array(2.5, np.float32),
}


def good_file(folder: Path) -> Path:
    save_file(dict(TENSORS), folder / SINGLE_FILE, metadata={"format": "pt"})
    return folder / SINGLE_FILE


def test_tensors_are_what_the_safetensors_library_wrote(tmp_path: Path) -> None:
    good_file(tmp_path)
    weights = CheckpointFolder(tmp_path)
    assert weights.shapes() == {name: array.shape for name, array in TENSORS.items()}
    for name, array in TENSORS.items():
        assert weights.read(name).dtype == array.dtype
        np.testing.assert_array_equal(weights.read(name), array)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = good_file(tmp_path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=f"{path}: .*Download or copy the file again"):
            CheckpointFolder(tmp_path)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_changed_byte_of_the_header_is_noticed_or_changes_no_place(
    tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever the bytes, the error is ours, and every tensor can be read."""
    path = good_file(tmp_path)
    content = bytearray(path.read_bytes())
    header_end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(CheckpointError):
        weights = CheckpointFolder(tmp_path)
        assert all(weights.read(name).shape == shape for name, shape in weights.shapes().items())


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / SINGLE_FILE).mkdir()
    with pytest.raises(CheckpointError, match=rf"{SINGLE_FILE}: cannot be read \(Is a directory\)"):
        CheckpointFolder(tmp_path)


def test_weights_of_another_dtype_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.float16)}, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=rf"{SINGLE_FILE}: tensor 'a' .*F16.*F32.*BF16"):
        CheckpointFolder(tmp_path)


def write_shards(folder: Path, files: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    for file, tensors in files.items():
        save_file(dict(tensors), folder / file)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_a_sharded_checkpoint_is_read_by_its_index(tmp_path: Path) -> None:
    write_shards(tmp_path, {FIRST: {"a": TENSORS["a"]}, SECOND: {"b": TENSORS["b"]}})
    save_file({"stale": TENSORS["a"]}, tmp_path / "model-00003-of-00003.safetensors")
    weights = CheckpointFolder(tmp_path)
    assert set(weights.shapes()) == {"a", "b"}
    np.testing.assert_array_equal(weights.read("b"), TENSORS["b"])
    (tmp_path / SECOND).unlink()
    with pytest.raises(CheckpointError, match=f"{SECOND}: named by {INDEX_FILE} but absent"):
        CheckpointFolder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, {SECOND: {"b": TENSORS["b"]}, FIRST: TENSORS})
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": FIRST, "b": SECOND}}))
    with pytest.raises(CheckpointError, match=f"{SECOND}: tensor 'b' is also in .*{FIRST}"):
        CheckpointFolder(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "", 3])
def test_an_index_cannot_name_a_file_elsewhere(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    good_file(tmp_path)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=rf"{INDEX_FILE}: {name!r} is not the name of a file"):
        CheckpointFolder(folder)


@pytest.mark.parametrize("content", ["", "{}", '{"weight_map": ["a"]}', "[" * 100_000])
def test_a_damaged_index_is_explained(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{INDEX_FILE}: expected a JSON object with a"):
        CheckpointFolder(tmp_path)


def test_a_folder_without_weights_says_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError) as raised:
        CheckpointFolder(tmp_path)
    for part in (str(tmp_path), "no weights", SINGLE_FILE, INDEX_FILE, ".bin"):
        assert part in str(raised.value)


def check(folder: Path) -> None:
    source = open_model(str(folder))
    check_weights(source.weights(), source.config, source.name)


def test_a_missing_an_extra_and_a_wrongly_shaped_tensor_are_named_at_once(tmp_path: Path) -> None:
    tensors = varied_weights(SMALL)
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.bias"):
        del tensors[name]
    tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    tensors["model.layers.2.mlp.down_proj.weight"] = np.zeros((32, 47), np.float32)
    with pytest.raises(CheckpointError) as raised:
        check(write_checkpoint(tmp_path, SMALL, tensors))
    for part in (
        str(tmp_path),
        "missing: model.embed_tokens.weight, model.layers.1.self_attn.k_proj.bias",
        "not part of the model: model.layers.3.mlp.up_proj.weight",
        "wrong shape: model.layers.2.mlp.down_proj.weight has shape [32, 47], "
        "the config needs [32, 48]",
    ):
        assert part in str(raised.value)


def test_a_tied_model_may_carry_its_head(tmp_path: Path) -> None:
    check(write_checkpoint(tmp_path, SMALL, varied_weights(SMALL), tie_word_embeddings=True))


def test_random_weights_are_those_of_any_other_machine_and_day() -> None:
    """A stored sample, and each tensor depends on its name alone, not on what was read before."""
    config = PRESETS["tiny"]
    name = "model.layers.7.self_attn.k_proj.bias"
    first = RandomWeights(config, 0).read(name)
    other = RandomWeights(config, 0)
    other.read("model.embed_tokens.weight")
    np.testing.assert_array_equal(other.read(name), first)
    sample = [9.202957153320312e-05, 0.03125, 0.0012969970703125, -0.016845703125]
    assert first[:4].astype(np.float32).tolist() == sample
    assert not np.array_equal(RandomWeights(config, 1).read(name), first)
