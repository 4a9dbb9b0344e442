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
)
from qwen.presets import PRESETS
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
    """For any bytes, either loading raises our error or every tensor can be read."""
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
    with pytest.raises(
        CheckpointError, match=f"{SECOND} does not exist, but {INDEX_FILE} names it"
    ):
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
    for part in (str(tmp_path), "no weights", SINGLE_FILE, INDEX_FILE, "pytorch_model.bin"):
        assert part in str(raised.value)


def check(folder: Path) -> None:
    open_model(folder).check_weights()


def test_a_missing_an_extra_and_a_wrongly_shaped_tensor_are_named_at_once(tmp_path: Path) -> None:
    tensors = varied_weights(SMALL)
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.bias"):
        del tensors[name]
    tensors["model.layers.1.mlp.router.weight"] = np.zeros((48, 32), np.float32)
    tensors["model.layers.2.mlp.down_proj.weight"] = np.zeros((32, 47), np.float32)
    with pytest.raises(CheckpointError) as raised:
        check(write_checkpoint(tmp_path, SMALL, tensors))
    for part in (
        str(tmp_path),
        "missing: model.embed_tokens.weight, model.layers.1.self_attn.k_proj.bias",
        "not part of the model: model.layers.1.mlp.router.weight",
        "wrong shape: model.layers.2.mlp.down_proj.weight has shape [32, 47], "
        "but the config needs [32, 48]",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("name", "dtype", "parts"),
    [
        ("model.layers.0.self_attn.q_norm.weight", "float32", ["not part of the model"]),
        ("model.layers.0.self_attn.o_proj.bias", "float32", ["not part of the model"]),
        ("model.layers.0.mlp.experts.0.up_proj.weight", "float32", ["not part of the model"]),
        ("model.embed_positions.weight", "float32", ["not part of the model"]),
        ("encoder.weight", "float32", ["not part of the model"]),
        (
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
            "float32",
            ["LoRA", "merge_"],
        ),
        ("model.layers.0.mlp.up_proj.lora_B.default.weight", "float32", ["LoRA", "merge_"]),
        ("model.layers.0.mlp.up_proj.lora_magnitude_vector", "float32", ["LoRA", "merge_"]),
        ("model.layers.0.mlp.up_proj.qweight", "int32", ["AWQ or GPTQ", "dequantize"]),
        ("model.layers.0.mlp.up_proj.g_idx", "int32", ["GPTQ"]),
        ("model.layers.0.mlp.up_proj.weight.absmax", "uint8", ["bitsandbytes"]),
        (
            "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4",
            "uint8",
            ["bitsandbytes"],
        ),
        ("model.layers.0.mlp.up_proj.SCB", "float32", ["bitsandbytes"]),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "float32", ["FP8"]),
        ("model.layers.0.mlp.up_proj.weight_scale", "bfloat16", ["FP8", "compressed-tensors"]),
        ("model.layers.0.mlp.up_proj.weight_packed", "int32", ["compressed-tensors"]),
        ("model.layers.0.mlp.up_proj.scales", "float16", ["MLX"]),
        ("model.layers.0.mlp.up_proj.weight", "int8", ["dtype I8", "quantized"]),
        ("model.layers.0.mlp.up_proj.weight", "float8_e4m3fn", ["dtype F8_E4M3", "FP8"]),
        ("language_model.model.embed_tokens.weight", "float32", ["two models"]),
    ],
)
def test_a_tensor_that_would_change_the_activations_is_refused(
    tmp_path: Path, name: str, dtype: str, parts: list[str]
) -> None:
    tensors = varied_weights(SMALL)
    values = tensors.get(name, np.ones((2, 2), np.float32))
    tensors[name] = values.astype(np.dtype(dtype))
    with pytest.raises(CheckpointError) as raised:
        check(write_checkpoint(tmp_path, SMALL, tensors))
    for part in (str(tmp_path), name, *parts):
        assert part in str(raised.value)


def test_an_unknown_prefix_is_named(tmp_path: Path) -> None:
    tensors = {f"student.{name}": array for name, array in varied_weights(SMALL).items()}
    with pytest.raises(CheckpointError, match=r"missing: model\..*student\.model\."):
        check(write_checkpoint(tmp_path, SMALL, tensors))


def test_ignored_tensors_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = varied_weights(SMALL) | {"score.weight": np.ones((2, 32), np.float32)}
    check(write_checkpoint(tmp_path, SMALL, varied_weights(SMALL)))
    assert not caplog.messages
    write_checkpoint(tmp_path, SMALL, tensors, num_hidden_layers=2)
    save_file(TENSORS, tmp_path / SECOND)
    check(tmp_path)
    check(tmp_path)
    assert len(caplog.messages) == 3
    for part in ("model.layers.2.input_layernorm.weight", "score.weight", SECOND):
        [message] = [each for each in caplog.messages if part in each]
        assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"GGUF\x03\0\0\0" + bytes(64), "GGUF"),
        (b"PK\x03\x04" + bytes(64), "zip"),
        (b"\x80\x02}q\x00." + bytes(64), "pickle"),
        (b"<!DOCTYPE html><html></html>", "web page"),
    ],
)
def test_another_file_in_place_of_weights_is_named(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    (tmp_path / SINGLE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{SINGLE_FILE}: .*{kind}"):
        CheckpointFolder(tmp_path)


def test_random_weights_are_those_of_any_other_machine_and_day() -> None:
    """Values match a stored sample and depend only on the tensor's name, not on earlier reads."""
    config = PRESETS["tiny"]
    name = "model.layers.7.self_attn.k_proj.bias"
    first = RandomWeights(config, 0).read(name)
    other = RandomWeights(config, 0)
    other.read("model.embed_tokens.weight")
    np.testing.assert_array_equal(other.read(name), first)
    sample = [9.202957153320312e-05, 0.03125, 0.0012969970703125, -0.016845703125]
    assert first[:4].astype(np.float32).tolist() == sample
    assert not np.array_equal(RandomWeights(config, 1).read(name), first)
