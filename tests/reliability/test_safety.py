"""Untrusted input cannot write outside the output folder or run code, and no secret is stored."""

import json
import re
import shutil
from pathlib import Path

import pytest

from activation_dataset.canonical_json import sealed_text
from activation_dataset.damage import DatasetError
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.verify import verify
from qwen.source import open_model
from tests.activation_dataset.synthetic import write_dataset
from tests.conftest import ROOT
from tests.end_to_end.job import digests, rejections, run, run_process

OUTPUT = re.compile(
    r"README\.md|metadata\.json|run\.json|errors/(rejected|notices)\.jsonl"
    r"|layer_\d+/activations-\d{5}-of-\d{5}\.tfrecord|prompts/prompts-\d{5}-of-\d{5}\.tfrecord"
    r"|manifests/(layer_\d+|prompts)-\d{5}-of-\d{5}\.json"
)
ESCAPES = ("../../../escaped", "/escaped", "..\\escaped", "a/../../b", "~root/x", "layer_0/../../x")
FLAGS = ("--layers_to_extract", "0")


def test_ids_and_names_that_look_like_paths_stay_names(checkpoint: Path, tmp_path: Path):
    folder = tmp_path / "tasks" / "..hidden"
    folder.mkdir(parents=True)
    documents = [{"id": each, "text": "words"} for each in (*ESCAPES, "nul\0byte", "line\nbreak")]
    lines = "".join(json.dumps(each) + "\n" for each in documents)
    (folder / "..%2f.jsonl").write_text(lines)
    outside = set(digests(tmp_path))
    out = tmp_path / "out"
    run(checkpoint, f"{tmp_path}/tasks/..*/*", out, *FLAGS)
    written = set(digests(out))
    assert all(OUTPUT.fullmatch(name) for name in written), written
    assert set(digests(tmp_path)) == outside | {f"out/{name}" for name in written}
    assert verify(out).problems == ()
    ids = {record.sample_id for record in ActivationDataset(out).records(0)}
    assert ids == {f"..hidden/..%2f.jsonl#{each}" for each in ESCAPES}
    assert [each["reason"] for each in rejections(out)] == ["bad_id", "bad_id"]


@pytest.mark.parametrize("path", ["../other.tfrecord", "/etc/passwd"])
def test_metadata_cannot_point_outside_its_folder(tmp_path: Path, path: str):
    write_dataset(tmp_path, [[3]])
    fields = json.loads((tmp_path / "metadata.json").read_text())
    del fields["metadata_sha256"]
    fields["batches"][0]["files"]["10"]["path"] = path
    (tmp_path / "metadata.json").write_text(sealed_text(fields, "metadata_sha256"))
    with pytest.raises(DatasetError, match=re.escape(path)):
        ActivationDataset(tmp_path)
    assert verify(tmp_path).problems


def test_neither_secrets_nor_texts_are_written_or_logged(checkpoint: Path, tmp_path: Path):
    secrets = {"HF_TOKEN": "hf_secretsecretsecret", "AWS_SECRET_ACCESS_KEY": "awssecretsecret"}
    text = "Unmistakable words of a private document"
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(
        json.dumps({"id": "1", "text": text}) + "\n" + json.dumps({"id": "2", "text": text * 99})
    )
    out = tmp_path / "out"
    flags = (*FLAGS, "--max_length", "200")
    result = run_process(checkpoint, tasks, out, *flags, environment=secrets)
    assert result.returncode == 0, result.stderr
    written = b"".join(path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file())
    said = written + (result.stdout + result.stderr).encode()
    for hidden in (*secrets.values(), "Unmistakable", "private document"):
        assert hidden.encode() not in said
    assert len(rejections(out)) == 1


def test_no_code_of_a_checkpoint_is_run(checkpoint: Path, tmp_path: Path):
    model, mark = tmp_path / "model", tmp_path / "was run"
    shutil.copytree(checkpoint, model)
    (model / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    for name, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        fields = json.loads((model / name).read_text())
        target = "evil.Evil" if key == "AutoConfig" else ["evil.Evil", "evil.Evil"]
        (model / name).write_text(json.dumps(fields | {"auto_map": {key: target}}))
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch was_run'\ntR.")
    source = open_model(str(model), ignore_config=("auto_map",))
    source.tokenizer()
    source.weights().shapes()
    flags = (*FLAGS, "--ignore_config=auto_map")
    run(model, ROOT / "examples" / "tasks" / "fall.json", tmp_path / "out", *flags)
    assert not mark.exists()


def test_a_chat_template_runs_in_a_sandbox(checkpoint: Path, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    (model / "chat_template.jinja").write_text(
        "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    )
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(
        json.dumps({"id": "1", "messages": [{"role": "user", "content": "x"}]})
        + "\n"
        + json.dumps({"id": "2", "text": "words"})
    )
    run(model, tasks, tmp_path / "out", *FLAGS)
    (rejected,) = rejections(tmp_path / "out")
    assert rejected["reason"] == "chat_template"
    assert "unsafe" in rejected["detail"]


def test_every_locked_package_but_torch_has_a_version_and_a_hash():
    for path in (ROOT / "requirements").glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        packages = re.split(r"\n(?=\S)", "\n".join(lines))
        hashed = [each for each in packages if "==" in each and "--hash=sha256:" in each]
        if path.name == "torch.txt":
            assert re.fullmatch(r"torch==[\d.]+", packages[0].strip())
        else:
            assert packages == hashed, path
