"""Values of `--model_path`: a model opens, and anything else is named in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from qwen.checkpoint import SINGLE_FILE
from qwen.source import open_model
from tests.end_to_end.job import error_of

ADAPTER = {"base_model_name_or_path": "Qwen/Qwen2.5-0.5B", "peft_type": "LORA"}


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


@pytest.fixture
def refused(
    example_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[object], str]:
    out, flags = tmp_path / "out", ("--layers_to_extract", "all")
    return lambda path: error_of(capsys, path, example_tasks, out, *flags)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/nowhere/model", "no such folder"),
        ("", "no such folder"),
        ("no such/model", "not a hub id"),
        ("models/qwen 2.5", "not a hub id"),
        ("Qwen/Qwen2.5-0.5B/", "without a slash"),
        ("~nobody-here/model", "no such folder"),
        ("./model@v1", "no such folder"),
        ("a/b/c@v1", "no such folder"),
        ("..", "config.json does not exist"),
        ("org/.model.", "not a hub id"),
        ("org/model@", "not a hub id"),
        (r"C:\models\qwen", "Windows"),
        ("D:/models/qwen", "Windows"),
        (r"models\qwen", "Windows"),
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B", "https:"),
        ("s3://bucket/model", "s3:"),
        (str(Path("gs://bucket/model")), "not as a Path"),
        ("random:huge", "not a preset"),
        ("x" * 5000, "no such folder"),
    ],
)
def test_a_path_without_a_model(refused: Callable[[object], str], path: str, part: str) -> None:
    line = refused(path)
    assert part in line
    assert repr(path) in line or "config.json" in part


def test_an_unknown_hub_id(
    refused: Callable[[object], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(repository: str, **options: object) -> str:
        raise LocalEntryNotFoundError("not in the cache\nand no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert "'org/name.with-dot_1'" in refused("org/name.with-dot_1")


def test_a_hub_repository_of_another_format(
    refused: Callable[[object], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(repository: str, **options: object) -> str:
        return str(tmp_path / "snapshots" / "0a")

    def list_repo_files(repository: str, revision: str) -> list[str]:
        return ["README.md", f"{revision}.gguf"]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    line = refused("org/model-GGUF")
    assert "'org/model-GGUF': config.json does not exist; 0a.gguf is GGUF" in line


@pytest.mark.parametrize("name", ["with space", "with@at", "with.dot", "ends with/", "ünïcode"])
def test_a_folder_of_any_name_is_opened(model: Path, name: str) -> None:
    folder = model.rename(model.parent / name)
    open_model(f"{folder}/" if name.endswith("/") else str(folder)).check_weights()


def test_a_folder_whose_name_is_given_with_a_space_too_many(
    refused: Callable[[object], str], model: Path
) -> None:
    assert "without spaces around it" in refused(f"{model} ")


@pytest.mark.parametrize("has_config", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("README.md", "", ["README.md", "model.safetensors"]),
        ("qwen-Q4_K_M.GGUF", "GGUF", ["qwen-Q4_K_M.GGUF", "llama.cpp", "dequantize"]),
        ("pytorch_model.bin", "", ["pytorch_model.bin", "pickle", "save_pretrained"]),
        ("flax_model.msgpack", "", ["flax_model.msgpack", "another framework"]),
        ("model-1.safetensors", "", ["model-1.safetensors", "index.json"]),
        ("adapter_config.json", json.dumps(ADAPTER), ["Qwen/Qwen2.5-0.5B", "merge_and_unload"]),
        ("adapter_config.json", "[", ["LoRA adapter", "merge_and_unload"]),
        ("a/b/config.json", "{}", ["a/b"]),
    ],
)
def test_a_folder_that_is_not_a_checkpoint(
    refused: Callable[[object], str],
    model: Path,
    has_config: bool,
    name: str,
    content: str,
    parts: list[str],
) -> None:
    (model / SINGLE_FILE).unlink()
    if not has_config:
        shutil.rmtree(model)
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_text(content)
    line = refused(model)
    for part in (str(model), *parts):
        assert part in line


def test_an_empty_folder(refused: Callable[[object], str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = refused(tmp_path / "empty")
    assert f"{tmp_path / 'empty'}': config.json does not exist; it is empty" in line


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"GGUF\x03", "GGUF"), (b"version https://git-lfs", "Git LFS"), (b"{}", "a file")],
)
def test_a_file_in_place_of_a_folder(
    refused: Callable[[object], str], tmp_path: Path, content: bytes, part: str
) -> None:
    (tmp_path / "model.file").write_bytes(content)
    assert part in refused(tmp_path / "model.file")


@pytest.mark.parametrize("name", ["", SINGLE_FILE, "config.json"])
def test_a_dangling_link(refused: Callable[[object], str], model: Path, name: str) -> None:
    link = model / name
    shutil.rmtree(link) if not name else link.unlink()
    link.symlink_to("/nowhere/blob")
    line = refused(model)
    assert str(model) in line
    assert f"{name} is a link to /nowhere/blob, which does not exist" in line


def test_an_adapter_next_to_the_base_model(refused: Callable[[object], str], model: Path) -> None:
    (model / "adapter_config.json").write_text(json.dumps(ADAPTER))
    shutil.copy(model / SINGLE_FILE, model / "adapter_model.safetensors")
    line = refused(model)
    for part in ("merge_and_unload", "--ignore_config adapter_config.json", str(model)):
        assert part in line
    open_model(model, ["adapter_config.json"]).check_weights()


def test_a_folder_of_the_hub_s_cache(refused: Callable[[object], str], model: Path) -> None:
    """A single snapshot, or the one that `refs/main` names, opens as its hub id does offline."""
    cache = model.parent / "models--org--name"
    (cache / "snapshots").mkdir(parents=True)
    assert "0 snapshots" in refused(cache)
    for commit in ("0a", "0b"):
        shutil.copytree(model, cache / "snapshots" / commit)
        (cache / "snapshots" / commit / "commit.txt").write_text(commit)
        if commit == "0a":
            assert open_model(cache).files.text_folder() == cache / "snapshots" / "0a"
    other = cache.rename(cache.with_name("models--org--other"))
    line = refused(other)
    assert str(other / "snapshots" / "0a") in line
    assert str(other / "snapshots" / "0b") in line
    (other / "refs").mkdir()
    (other / "refs" / "main").write_text("0b\n")
    assert open_model(other).files.text_folder() == other / "snapshots" / "0b"
