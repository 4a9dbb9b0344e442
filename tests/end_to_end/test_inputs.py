"""Inputs of every kind, and templates, which give the expected tokens."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from activation_dataset.reading.reader import ActivationDataset
from beam_pipeline.command import main
from qwen.source import open_model
from tests.conftest import ROOT
from tests.end_to_end.job import flags_of, metadata_of, problems_of, rejections, run

FLAGS = ("--layers_to_extract", "0", "--pooling", "none", "--batch_size", "1")

TASK = {
    "train": [{"input": [[1, 2], [3, 4]], "output": [[5]]}],
    "test": [{"input": [[6]], "output": [[0]]}, {"input": [[7, 8]]}],
}


def write(path: Path, *values: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")
    return path


@pytest.fixture
def stored(checkpoint: Path, tmp_path: Path):
    """Return a function that runs the job and returns the text of each sample's stored tokens."""

    def run_and_read(tasks: Path, *flags: str) -> dict[str, str]:
        out = tmp_path / "out"
        run(checkpoint, tasks, out, *FLAGS, *flags)
        assert problems_of(out) == []
        tokenizer = open_model(str(checkpoint)).tokenizer()
        return {
            record.sample_id: str(tokenizer.decode(record.token_ids))
            for record in ActivationDataset(out).records(0)
        }

    return run_and_read


def test_texts_conversations_and_tasks_in_one_run(stored, tmp_path: Path):
    """The model's chat template renders conversations, and every test input becomes a sample."""
    folder = tmp_path / "corpus"
    write(
        folder / "texts.jsonl",
        {"id": "a", "text": "Any text, é 漢字."},
        {"id": "c", "text": " \n"},
        {"id": "a", "text": "again"},
    )
    closed = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Why?"}]
    write(
        folder / "chats.jsonl",
        {"id": "open", "messages": closed[1:]},
        {"id": "closed", "messages": [*closed, {"role": "assistant", "content": "So."}]},
    )
    write(folder / "challenges.json", {"007": TASK})
    deep = write(folder / "deep" / "challenges.json", {"007": TASK | {"test": TASK["test"][1:]}})
    begin = "Input:\n12\n34\nOutput:\n5\n\nInput:\n"
    assert stored(folder, "--tasks_file", str(deep)) == {
        "texts.jsonl#a": "Any text, é 漢字.",
        "chats.jsonl#open": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "chats.jsonl#closed": "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nWhy?"
        "<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n",
        "challenges.json#007/0": f"{begin}6\nOutput:\n",
        "challenges.json#007/1": f"{begin}78\nOutput:\n",
        "deep/challenges.json#007/0": f"{begin}78\nOutput:\n",
    }
    reasons = {each["reason"] for each in rejections(tmp_path / "out")}
    assert reasons == {"empty_text", "duplicate_id"}


def test_a_template_of_ones_own_needs_no_code_and_long_prompts_are_cut(stored, tmp_path: Path):
    template = (ROOT / "corpus" / "templates" / "digits.toml").read_text("utf-8")
    own = tmp_path / "own.toml"
    own.write_text(
        template.replace('name = "digits"', 'name = "own"')
        .replace("Input:", "Von:")
        .replace("Output:", "Nach:")
        .replace('cell_separator = ""', 'cell_separator = " "'),
        "utf-8",
    )
    tasks = write(tmp_path / "tasks.jsonl", TASK | {"id": "t"}, {"id": "long", "text": "1" * 200})
    flags = ("--prompt_template", str(own), "--max_length", "100", "--overlength", "truncate")
    texts = stored(tasks, *flags)
    assert texts["tasks.jsonl#t/1"] == "Von:\n1 2\n3 4\nNach:\n5\n\nVon:\n7 8\nNach:\n"
    assert texts["tasks.jsonl#long"] == "1" * 100
    metadata = metadata_of(tmp_path / "out")
    assert metadata.counts.rejected == ({}, {}, {})
    recorded = metadata.run.prompt_template
    assert (recorded["name"], recorded["query"]) == ("own", "Von:\n{input}\nNach:\n")


def test_skipped_files_and_duplicates_are_reported(
    stored, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "corpus"
    once = TASK | {"test": TASK["test"][:1]}
    write(folder / "challenges.json", {"007": once})
    write(folder / "deep" / "008.json", once)
    lines = b'{"name": "n", "text": "one"}\n{"name": "n", "text": "two"}'
    (folder / "deep" / "more.jsonl.zst").write_bytes(pa.compress(lines, "zstd", asbytes=True))
    (folder / "notes.csv").write_text("a,b")
    (folder / os.fsdecode(b"caf\xe9.json")).write_text(json.dumps({"text": "text"}))
    begin = "Input:\n12\n34\nOutput:\n5\n\nInput:\n6\nOutput:\n"
    assert stored(folder) == {
        "challenges.json#007/0": begin,
        "deep/008.json#008/0": begin,
        "deep/more.jsonl.zst#n": "one",
        "deep/more.jsonl.zst#line-000002": "two",
        "caf\\xe9.json#caf\\xe9": "text",
    }
    metadata = metadata_of(tmp_path / "out")
    assert (metadata.skipped_files, metadata.duplicate_tasks) == (("notes.csv",), 1)
    notices = (tmp_path / "out" / "errors" / "notices.jsonl").read_text("utf-8").splitlines()
    assert [(each["reason"], each["task_id"]) for each in map(json.loads, notices)] == [
        ("same_content", "008"),
        ("repeated_name", "line-000002"),
    ]
    printed = capsys.readouterr().out
    assert "skipped  1 file; notes.csv" in printed
    assert "repeated 1 " in printed
    assert main(["plan", *flags_of(checkpoint, folder, tmp_path / "out", FLAGS)]) == 0
    assert "1 skipped: notes.csv" in capsys.readouterr().out
