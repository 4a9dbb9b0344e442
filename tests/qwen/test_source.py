from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import huggingface_hub
import numpy as np
import pytest
from google.cloud.storage import Blob, Bucket
from huggingface_hub.errors import LocalEntryNotFoundError

from qwen.checkpoint import SINGLE_FILE, CheckpointError
from qwen.config import ModelConfigError
from qwen.extractor import ActivationExtractor
from qwen.model_files import ModelNotFoundError
from qwen.presets import PRESETS
from qwen.source import open_model
from qwen.tokenizer import NAMED_CHAT_TEMPLATES, TokenizerError
from tests.end_to_end.emulator import BUCKET, address, bucket, upload
from tests.qwen.checkpoints import (
    SMALL,
    add_tokenizer,
    offline_hub_cache,
    varied_weights,
    write_checkpoint,
)

__all__ = ["address", "bucket"]

TEXT_FILES = {"config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A complete checkpoint with the shipped tokenizer, a pickle and some code."""
    folder = write_checkpoint(tmp_path / "checkpoint", replace(SMALL, vocab_size=1024))
    add_tokenizer(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    (folder / "modeling_custom.py").write_text("raise SystemExit('custom code ran')")
    return folder


def last_token(model_path: str) -> np.ndarray:
    """Return the last token's vector, [1, hidden] float32."""
    extractor = ActivationExtractor.load(model_path, [1], compute_dtype="float32")
    return np.asarray(extractor(["3 0 3\n0 3 0\n"])[1])


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_that_its_weights_are_random(name: str) -> None:
    source = open_model(f"random:{name}")
    assert source.is_random
    assert source.weights_fingerprint() == f"random:{name}, seed 0"
    assert source.config == PRESETS[name]


def test_the_fingerprints_change_with_the_files(checkpoint: Path) -> None:
    source = open_model(str(checkpoint))
    content = (checkpoint / SINGLE_FILE).read_bytes()
    crc = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
    weights, tokenizer = source.weights_fingerprint(), source.tokenizer_fingerprint()
    assert weights == f"{SINGLE_FILE}: {crc}"
    with (checkpoint / SINGLE_FILE).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")
    assert source.weights_fingerprint() != weights
    assert source.tokenizer_fingerprint() == tokenizer
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    assert source.tokenizer_fingerprint() != tokenizer


@pytest.mark.parametrize("path", ["/nowhere/model", "~/no-such-model", "model", "a/b/c"])
def test_a_missing_folder_says_what_could_be_given(path: str) -> None:
    with pytest.raises(ModelNotFoundError) as raised:
        open_model(path)
    for part in (repr(path), "gs://", "hub id", "random:tiny"):
        assert part in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_not_there_or_not_json(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json does not exist.*--model_path"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelConfigError, match=r"config\.json: not valid JSON"):
        open_model(str(tmp_path))


# Tokenizers


def test_a_folder_without_a_tokenizer(checkpoint: Path) -> None:
    """Without the check, transformers would build a tokenizer whose only token is <|endoftext|>."""
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=f"{checkpoint}: there is no tokenizer"):
        open_model(str(checkpoint)).tokenizer()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b'{"model": {}}'),
        ("tokenizer_config.json", b"null"),
    ],
)
def test_a_damaged_tokenizer(checkpoint: Path, name: str, content: bytes) -> None:
    (checkpoint / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"{checkpoint}: the tokenizer cannot be loaded"):
        open_model(str(checkpoint)).tokenizer()


# Cloud Storage. A model is listed once per process, so each test has its own prefix.


def test_a_bucket_s_folder_is_the_local_folder(checkpoint: Path, bucket: Bucket) -> None:
    """Text files are downloaded without the weights, and code or pickles never."""
    upload(checkpoint, bucket, "whole/model")
    upload(checkpoint, bucket, "whole/model/subfolder")
    named = checkpoint / NAMED_CHAT_TEMPLATES
    named.mkdir()
    (named / "tool_use.jinja").write_text("{{ tools }}")
    upload(named, bucket, f"whole/model/{named.name}")
    url = f"gs://{BUCKET}/whole/model/"
    remote, local = open_model(url), open_model(str(checkpoint))
    assert remote.config == local.config
    assert remote.weights_fingerprint() == local.weights_fingerprint()
    assert remote.tokenizer_fingerprint() == local.tokenizer_fingerprint()
    assert names_in(remote.files.text_folder()) == TEXT_FILES | {named.name}
    np.testing.assert_array_equal(last_token(url), last_token(str(checkpoint)))
    assert names_in(remote.files.weights_folder()) == TEXT_FILES | {SINGLE_FILE, named.name}


def test_weights_in_a_bucket_are_checked_without_fetching_them(
    checkpoint: Path, bucket: Bucket
) -> None:
    upload(checkpoint, bucket, "checked")
    source = open_model(f"gs://{BUCKET}/checked")
    source.check_weights()
    assert names_in(source.files.text_folder()) == TEXT_FILES
    for size in (os.path.getsize(checkpoint / SINGLE_FILE) - 1, 100, 3, 0):
        os.truncate(checkpoint / SINGLE_FILE, size)
        upload(checkpoint, bucket, f"cut/{size}")
        with pytest.raises(CheckpointError, match=f"{SINGLE_FILE}: .*Download or copy the file"):
            open_model(f"gs://{BUCKET}/cut/{size}").check_weights()


def break_off(file: Path) -> None:
    os.truncate(file, os.path.getsize(file) // 2)
    raise ConnectionError("the connection broke off")


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [(break_off, "broke off"), (damage, "arrived with CRC32C")],
)
def test_a_download_that_fails_leaves_nothing_behind(
    checkpoint: Path,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Path], None],
    problem: str,
) -> None:
    """A retry must not use an incomplete or damaged file."""
    prefix = fault.__name__
    upload(checkpoint, bucket, prefix)
    source = open_model(f"gs://{BUCKET}/{prefix}")
    whole = Blob.download_to_filename

    def faulty(blob: Any, filename: Path, **options: Any) -> None:
        whole(blob, filename, **options)
        fault(filename)

    with monkeypatch.context() as patched:
        patched.setattr(Blob, "download_to_filename", faulty)
        with pytest.raises(ModelNotFoundError, match=rf"{prefix}.*{problem}"):
            source.files.weights_folder()
    folder = source.files.weights_folder()
    assert (folder / SINGLE_FILE).read_bytes() == (checkpoint / SINGLE_FILE).read_bytes()
    assert names_in(folder) == TEXT_FILES | {SINGLE_FILE}


def test_a_bucket_without_a_checkpoint(checkpoint: Path, bucket: Bucket) -> None:
    """The message also names files that are never downloaded."""
    (checkpoint / SINGLE_FILE).unlink()
    upload(checkpoint, bucket, "pickles")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_model(f"gs://{BUCKET}/pickles").check_weights()
    (checkpoint / "config.json").rename(checkpoint / "model.gguf")
    upload(checkpoint, bucket, "gguf")
    with pytest.raises(ModelNotFoundError, match=r"gguf'.*model\.gguf"):
        open_model(f"gs://{BUCKET}/gguf")


# The Hugging Face hub

COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def hub_cache(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, offline: a repository whose main branch is the first of two commits."""
    cache = offline_hub_cache(checkpoint, tmp_path, monkeypatch, *COMMITS)
    write_checkpoint(cache / "snapshots" / COMMITS[1], SMALL)
    (cache / "refs" / "tagged").write_text(COMMITS[1])
    return cache


@pytest.mark.parametrize(
    ("revision", "commit"),
    [("", 0), ("@main", 0), ("@tagged", 1), (f"@{COMMITS[1]}", 1)],
)
def test_every_process_has_the_commit_that_the_first_one_has_resolved(
    hub_cache: Path, revision: str, commit: int
) -> None:
    name = f"org/{hub_cache.name.rpartition('--')[2]}"
    source = open_model(name + revision)
    assert source.files.commit() == COMMITS[commit]
    assert source.name == name + revision
    assert source.pinned_path == f"{name}@{COMMITS[commit]}"
    (hub_cache / "refs" / "main").write_text(COMMITS[1])
    assert open_model(source.pinned_path).config == source.config
    assert source.files.weights_folder() == hub_cache / "snapshots" / COMMITS[commit]


def test_a_revision_that_does_not_exist_is_named(hub_cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"org/model'.*revision 'absent'"):
        open_model("org/model@absent")


def test_a_local_folder_with_an_at_sign_is_no_revision(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkpoint, tmp_path / "org" / "model@v1")
    monkeypatch.chdir(tmp_path)
    source = open_model("org/model@v1")
    assert source.files.commit() is None
    assert source.pinned_path == "org/model@v1"


def test_a_hub_repository_is_fetched_without_code_or_pickles(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / COMMITS[0]
    cache.mkdir()

    def snapshot_download(
        repository: str, *, revision: str | None, allow_patterns: list[str]
    ) -> str:
        assert revision in (None, COMMITS[0])
        if repository != "org/model":
            raise LocalEntryNotFoundError("no such repository")
        for pattern in allow_patterns:
            for file in checkpoint.glob(pattern):
                shutil.copy(file, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source = open_model("org/model")
    source.tokenizer()
    assert names_in(cache) == TEXT_FILES
    source.check_weights()
    assert names_in(cache) == TEXT_FILES | {SINGLE_FILE}
    assert source.weights().shapes().keys() == varied_weights(SMALL).keys() - {"lm_head.weight"}
    with pytest.raises(ModelNotFoundError, match="'org/absent' is not a local folder"):
        open_model("org/absent")
