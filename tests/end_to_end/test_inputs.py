"""Inputs of every kind, and templates: the stored tokens are those of the text one would expect."""

import json
from pathlib import Path

import pytest

from activation_dataset.reading.reader import ActivationDataset
from qwen.source import open_model
from tests.conftest import ROOT
from tests.end_to_end.job import dead_letters, metadata_of, problems_of, run

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
    """Runs the job, and gives the text of the stored tokens of each sample."""

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
    """Conversations go through the model's chat template, all test inputs become samples."""
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
    reasons = {each["reason"] for each in dead_letters(tmp_path / "out")}
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
