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
        {"id": "b", "text": "x"},
        {"id": "c", "text": " \n"},
        {"id": "a", "text": "again"},
    )
    user = {"role": "user", "content": "Why?"}
    closed = [{"role": "system", "content": "Short."}, user]
    write(
        folder / "chats.jsonl",
        {"id": "open", "messages": [user]},
        {"id": "closed", "messages": [*closed, {"role": "assistant", "content": "So."}]},
    )
    write(folder / "challenges.json", {"007": TASK})
    begin = "Input:\n12\n34\nOutput:\n5\n\nInput:\n"
    assert stored(folder) == {
        "texts.jsonl#a": "Any text, é 漢字.",
        "texts.jsonl#b": "x",
        "chats.jsonl#open": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "chats.jsonl#closed": "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nWhy?"
        "<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n",
        "challenges.json#007/0": f"{begin}6\nOutput:\n",
        "challenges.json#007/1": f"{begin}78\nOutput:\n",
    }
    reasons = {each["reason"] for each in dead_letters(tmp_path / "out")}
    assert reasons == {"empty_text", "duplicate_id"}


def test_a_task_may_be_a_message_for_the_chat_template(stored, tmp_path: Path):
    tasks = write(tmp_path / "task.json", TASK)
    text = stored(tasks, "--prompt_template", "numbered-chat")["task.json#task/1"]
    assert text.startswith("<|im_start|>system\nYou solve puzzles of ")
    assert "```grid shape: 2x2\n1 12\n2 34\n```" in text
    assert text.endswith("```grid shape: 1x2\n1 78\n```\n<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_of_ones_own_needs_no_code(stored, tmp_path: Path):
    template = (ROOT / "corpus" / "templates" / "digits.toml").read_text("utf-8")
    own = tmp_path / "own.toml"
    own.write_text(
        template.replace('name = "digits"', 'name = "own"')
        .replace("Input:", "Von:")
        .replace("Output:", "Nach:")
        .replace('cell_separator = ""', 'cell_separator = " "'),
        "utf-8",
    )
    text = stored(write(tmp_path / "task.json", TASK), "--prompt_template", str(own))
    assert text["task.json#task/1"] == "Von:\n1 2\n3 4\nNach:\n5\n\nVon:\n7 8\nNach:\n"
    recorded = metadata_of(tmp_path / "out").run.prompt_template
    assert (recorded["name"], recorded["query"]) == ("own", "Von:\n{input}\nNach:\n")


def test_long_prompts_are_cut_on_request(stored, tmp_path: Path):
    corpus = write(
        tmp_path / "corpus.jsonl", {"id": "short", "text": "42"}, {"id": "long", "text": "123456"}
    )
    texts = stored(corpus, "--max_length", "4", "--overlength", "truncate")
    assert texts == {"corpus.jsonl#short": "42", "corpus.jsonl#long": "1234"}
    assert metadata_of(tmp_path / "out").rejected == {}


def test_ids_that_recur_in_other_files_do_not_collide(stored, tmp_path: Path):
    folder = tmp_path / "tasks"
    one = write(folder / "a.json", TASK)
    write(folder / "deep" / "a.json", TASK | {"test": TASK["test"][1:]})
    other = write(folder / "b.jsonl", TASK | {"id": "a"})
    samples = stored(one, "--tasks_file", str(folder / "deep"), str(other))
    numbers = {"a.json#a": 2, "b.jsonl#a": 2, "deep/a.json#a": 1}
    assert set(samples) == {f"{key}/{i}" for key, count in numbers.items() for i in range(count)}
