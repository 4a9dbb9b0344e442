from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import numpy as np
import pytest
from gcp_storage_emulator.server import create_server
from google.cloud import storage

from qwen.checkpoint import SINGLE_FILE, CheckpointError
from qwen.config import PRESETS, ModelConfigError
from qwen.extractor import ActivationExtractor
from qwen.model_files import ModelNotFoundError
from qwen.source import PRESET_FILES, TokenizerError, open_model
from tests.qwen.checkpoints import SMALL, varied_weights, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
WITH_TOKENIZER = replace(SMALL, vocab_size=1024)
TEXT = "3 0 3\n0 3 0\n"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint with the tokenizer that the project ships, and a pickle beside it."""
    folder = write_checkpoint(tmp_path / "checkpoint", WITH_TOKENIZER)
    for file in PRESET_FILES.folder.iterdir():
        shutil.copy(file, folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    (folder / "modeling_custom.py").write_text("raise SystemExit('custom code ran')")
    return folder


def last_token(model_path: str) -> np.ndarray:
    """[1, hidden] float32"""
    return np.asarray(ActivationExtractor.load(model_path, [1], compute_dtype="float32")([TEXT])[1])


# Presets


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_that_its_weights_are_random(name: str) -> None:
    source = open_model(f"random:{name}")
    assert source.is_random
    assert source.weights_fingerprint() == f"random:{name}, seed 0"
    assert source.config == PRESETS[name]


# Local folders


def test_a_tokenizer_needs_no_pytorch_and_does_not_ask_for_it() -> None:
    program = (
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'torch' else find(name, *more)\n"
        "from qwen.source import open_model\n"
        "open_model('random:tiny').tokenizer()\n"
        "import sys\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_weights_fingerprint_is_each_file_s_crc32c(checkpoint: Path) -> None:
    content = (checkpoint / SINGLE_FILE).read_bytes()
    crc = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
    assert open_model(str(checkpoint)).weights_fingerprint() == f"{SINGLE_FILE}: {crc}"


def test_the_fingerprints_change_with_the_files(checkpoint: Path) -> None:
    source = open_model(str(checkpoint))
    weights, tokenizer = source.weights_fingerprint(), source.tokenizer_fingerprint()
    with (checkpoint / SINGLE_FILE).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")
    assert source.weights_fingerprint() != weights
    assert source.tokenizer_fingerprint() == tokenizer
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    assert source.tokenizer_fingerprint() != tokenizer


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "~/no-such-model", "model", "a/b/c"])
def test_a_missing_folder_says_what_could_be_given(path: str) -> None:
    with pytest.raises(ModelNotFoundError) as raised:
        open_model(path)
    for part in (repr(path), "no such folder", "gs://", "hub id", "random:tiny"):
        assert part in str(raised.value)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json does not exist.*--model_path"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelConfigError, match=r"config\.json: not valid JSON"):
        open_model(str(tmp_path))


def test_a_folder_without_weights_opens_but_does_not_load(checkpoint: Path) -> None:
    (checkpoint / SINGLE_FILE).unlink()
    source = open_model(str(checkpoint))
    source.tokenizer()
    with pytest.raises(CheckpointError, match=f"{checkpoint}: no weights"):
        source.weights()
    with pytest.raises(CheckpointError, match=f"{checkpoint}: no weights"):
        source.weights_fingerprint()


# Tokenizers


def test_a_tokenizer_that_does_not_fit_the_vocabulary(checkpoint: Path) -> None:
    tensors = varied_weights(SMALL)
    write_checkpoint(checkpoint, SMALL, tensors)
    with pytest.raises(TokenizerError) as raised:
        open_model(str(checkpoint)).tokenizer()
    for part in (str(checkpoint), "ids up to 1023", "vocab_size is 64", "tokenizer of this model"):
        assert part in str(raised.value)


def test_a_folder_without_a_tokenizer(checkpoint: Path) -> None:
    """transformers would make one up, whose only token is <|endoftext|>."""
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=f"{checkpoint}: there is no tokenizer"):
        open_model(str(checkpoint)).tokenizer()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("tokenizer.json", content) for content in (b"", b"[]", b'{"model": {}}')),
        *(("tokenizer_config.json", content) for content in (b"", b"null")),
    ],
)
def test_a_damaged_tokenizer(checkpoint: Path, name: str, content: bytes) -> None:
    (checkpoint / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"{checkpoint}: no tokenizer could be loaded"):
        open_model(str(checkpoint)).tokenizer()


# Cloud Storage


@pytest.fixture(scope="module")
def emulator() -> Iterator[storage.Client]:
    """A client of Google's API on this machine; the project's code talks to it too."""
    with socket.create_server(("localhost", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        patch.setenv("NO_GCE_CHECK", "true")
        server = create_server("localhost", port, in_memory=True)
        server.start()
        try:
            yield storage.Client()
        finally:
            server.stop()


@pytest.fixture
def upload(emulator: storage.Client, request: pytest.FixtureRequest) -> Callable[[Path, str], str]:
    """Uploads a folder to a bucket of the test's own and gives its ``gs://`` path."""
    bucket = emulator.create_bucket(f"bucket-{abs(hash(request.node.nodeid))}")

    def upload_folder(folder: Path, prefix: str) -> str:
        for file in folder.iterdir():
            bucket.blob(f"{prefix}{file.name}").upload_from_filename(file)
        return f"gs://{bucket.name}/{prefix}"

    return upload_folder


def test_a_bucket_s_folder_is_the_local_folder(
    checkpoint: Path, upload: Callable[[Path, str], str]
) -> None:
    url = upload(checkpoint, "models/qwen/")
    remote, local = open_model(url), open_model(str(checkpoint))
    assert remote.config == local.config
    assert remote.weights_fingerprint() == local.weights_fingerprint()
    assert remote.tokenizer_fingerprint() == local.tokenizer_fingerprint()
    np.testing.assert_array_equal(last_token(url), last_token(str(checkpoint)))


def test_only_what_is_needed_is_fetched(
    checkpoint: Path, upload: Callable[[Path, str], str]
) -> None:
    """The configuration and the tokenizer without the weights, and never code or a pickle."""
    upload(checkpoint, "models/qwen/subfolder/")
    source = open_model(upload(checkpoint, "models/qwen/"))
    text = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in source.files.text_folder().iterdir()} == text
    assert {file.name for file in source.files.weights_folder().iterdir()} == text | {SINGLE_FILE}


def test_weights_in_a_bucket_are_checked_without_fetching_them(
    checkpoint: Path, upload: Callable[[Path, str], str], tmp_path: Path
) -> None:
    source = open_model(upload(checkpoint, "models/qwen/"))
    source.check_weights()
    assert not (source.files.text_folder() / SINGLE_FILE).exists()

    model = shutil.copytree(checkpoint, tmp_path / "model")
    for size in (os.path.getsize(model / SINGLE_FILE) - 1, 100, 8, 3, 0):
        os.truncate(model / SINGLE_FILE, size)
        with pytest.raises(CheckpointError, match=f"{SINGLE_FILE}: .*Download or copy the file"):
            open_model(upload(model, f"cut/{size}/")).check_weights()


def test_a_download_that_breaks_off_leaves_nothing_behind(
    checkpoint: Path, upload: Callable[[Path, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file must not be taken for the whole one when the job tries again."""
    source = open_model(upload(checkpoint, "model/"))
    whole = storage.Blob.download_to_filename

    def broken(blob: Any, filename: str, **options: Any) -> None:
        whole(blob, filename, **options)
        os.truncate(filename, os.path.getsize(filename) // 2)
        raise ConnectionError("the connection broke off")

    monkeypatch.setattr(storage.Blob, "download_to_filename", broken)
    with pytest.raises(ModelNotFoundError, match=r"model/' cannot be read .*broke off"):
        source.files.weights_folder()
    monkeypatch.undo()
    folder = source.files.weights_folder()
    assert (folder / SINGLE_FILE).read_bytes() == (checkpoint / SINGLE_FILE).read_bytes()
    expected = {"config.json", "tokenizer.json", "tokenizer_config.json", SINGLE_FILE}
    assert {file.name for file in folder.iterdir()} == expected


def test_a_download_that_was_damaged_on_its_way_is_refused(
    checkpoint: Path, upload: Callable[[Path, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_model(upload(checkpoint, "model/"))
    whole = storage.Blob.download_to_filename

    def damaged(blob: Any, filename: Path, **options: Any) -> None:
        whole(blob, filename, **options)
        content = bytearray(filename.read_bytes())
        content[len(content) // 2] ^= 1
        filename.write_bytes(content)

    monkeypatch.setattr(storage.Blob, "download_to_filename", damaged)
    with pytest.raises(ModelNotFoundError, match=rf"{SINGLE_FILE} arrived with CRC32C \S+, the"):
        source.files.weights_folder()
    monkeypatch.undo()
    folder = source.files.weights_folder()
    assert (folder / SINGLE_FILE).read_bytes() == (checkpoint / SINGLE_FILE).read_bytes()


# The Hugging Face hub


class Hub(BaseHTTPRequestHandler):
    """The hub's answers for one repository, and a list of the files that were asked for."""

    folder: ClassVar[Path]
    asked_for: ClassVar[set[str]]
    commit = "a" * 40

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/model/revision/"):
            siblings = [{"rfilename": file.name} for file in self.folder.iterdir()]
            info = {"_id": "1", "id": "org/model", "sha": self.commit, "siblings": siblings}
            self._answer(200, json.dumps(info).encode(), "application/json")
        elif self.path.startswith("/api/models/org/model/tree/"):
            tree = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in self.folder.iterdir()
            ]
            self._answer(200, json.dumps(tree).encode(), "application/json")
        elif self.path.startswith("/org/model/resolve/"):
            name = self.path.rpartition("/")[2]
            self.asked_for.add(name)
            self._answer(200, (self.folder / name).read_bytes(), "application/octet-stream")
        else:
            self._answer(404, b"{}", "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{google_crc32c.value(body):08x}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


OPEN_FROM_HUB = """
import sys
from qwen.model_files import ModelNotFoundError
from qwen.source import open_model
source = open_model("org/model")
source.tokenizer()
print(source.config.hidden_size, len(source.weights().shapes()))
try:
    open_model("org/absent")
except ModelNotFoundError as error:
    print(error)
"""


def test_a_hub_repository_is_fetched_without_code_or_pickles(
    checkpoint: Path, tmp_path: Path
) -> None:
    """In a process of its own, since the hub's address is read at import."""

    class HubOfThisTest(Hub):
        folder = checkpoint
        asked_for: ClassVar = set()

    with ThreadingHTTPServer(("localhost", 0), HubOfThisTest) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            "HF_ENDPOINT": f"http://localhost:{server.server_port}",
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        output = subprocess.run(
            [sys.executable, "-c", OPEN_FROM_HUB],
            cwd=ROOT,
            env={**os.environ, **environment},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
        ).stdout
        server.shutdown()
    shape, *message = output.splitlines()
    assert shape.split() == ["32", str(len(varied_weights(WITH_TOKENIZER)))]
    assert "'org/absent' is neither a local folder nor could it be fetched" in " ".join(message)
    fetched = {"config.json", "tokenizer.json", "tokenizer_config.json", SINGLE_FILE}
    assert HubOfThisTest.asked_for == fetched
