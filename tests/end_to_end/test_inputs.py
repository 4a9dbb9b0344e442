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


def test_texts(stored, tmp_path: Path):
    corpus = write(
        tmp_path / "corpus.jsonl",
        {"id": "a", "text": "Any text, é 漢字."},
        {"id": "b", "text": "x"},
        {"id": "c", "text": " \n"},
        {"id": "a", "text": "again"},
    )
    assert stored(corpus) == {"corpus.jsonl#a": "Any text, é 漢字.", "corpus.jsonl#b": "x"}
    assert {each["reason"] for each in dead_letters(tmp_path / "out")} == {
        "empty_text",
        "duplicate_id",
    }


def test_conversations_go_through_the_models_chat_template(stored, tmp_path: Path):
    corpus = write(
        tmp_path / "corpus.jsonl",
        {"id": "open", "messages": [{"role": "user", "content": "Why?"}]},
        {
            "id": "closed",
            "messages": [
                {"role": "system", "content": "Short."},
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "So."},
            ],
        },
    )
    assert stored(corpus) == {
        "corpus.jsonl#open": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "corpus.jsonl#closed": "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nWhy?"
        "<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n",
    }


def test_every_test_input_of_kaggles_file_is_a_sample(stored, tmp_path: Path):
    tasks = write(tmp_path / "challenges.json", {"007": TASK, "008": TASK})
    begin = "Input:\n12\n34\nOutput:\n5\n\nInput:\n"
    assert stored(tasks) == {
        f"challenges.json#{task}/{index}": f"{begin}{grid}\nOutput:\n"
        for task in ("007", "008")
        for index, grid in enumerate(("6", "78"))
    }


def test_a_task_may_be_a_message_for_the_chat_template(stored, tmp_path: Path):
    tasks = write(tmp_path / "task.json", TASK)
    text = stored(tasks, "--prompt_template", "numbered-chat")["task.json#task/1"]
    assert text.startswith("<|im_start|>system\nYou solve puzzles of coloured grids.")
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
    assert recorded["name"] == "own"
    assert recorded["query"] == "Von:\n{input}\nNach:\n"
    assert recorded["cell_separator"] == " "


@pytest.mark.parametrize("overlength", ["reject", "truncate"])
def test_long_prompts_are_rejected_or_cut(stored, tmp_path: Path, overlength: str):
    corpus = write(
        tmp_path / "corpus.jsonl", {"id": "short", "text": "42"}, {"id": "long", "text": "123456"}
    )
    texts = stored(corpus, "--max_length", "4", "--overlength", overlength)
    if overlength == "truncate":
        assert texts == {"corpus.jsonl#short": "42", "corpus.jsonl#long": "1234"}
        assert metadata_of(tmp_path / "out").rejected == {}
    else:
        assert texts == {"corpus.jsonl#short": "42"}
        assert dead_letters(tmp_path / "out") == [
            {
                "source": "corpus.jsonl",
                "task_id": "long",
                "reason": "too_long",
                "detail": "corpus.jsonl#long: the prompt has 6 tokens, --max_length allows 4; "
                "raise it, or keep the beginning with --overlength=truncate",
            }
        ]


def test_ids_that_recur_in_other_files_do_not_collide(stored, tmp_path: Path):
    folder = tmp_path / "tasks"
    (folder / "deep").mkdir(parents=True)
    write(folder / "a.json", TASK)
    write(folder / "deep" / "a.json", TASK | {"test": TASK["test"][1:]})
    write(folder / "b.jsonl", TASK | {"id": "a"})
    samples = stored(
        folder / "a.json", "--tasks_file", str(folder / "deep"), str(folder / "b.jsonl")
    )
    numbers = {"a.json#a": 2, "b.jsonl#a": 2, "deep/a.json#a": 1}
    assert set(samples) == {f"{key}/{i}" for key, count in numbers.items() for i in range(count)}
