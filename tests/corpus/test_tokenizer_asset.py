"""Tests of the tokenizer in qwen/presets on the prompts of tasks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from corpus.parse import parse_tasks
from corpus.prompt import render
from corpus.task import Task
from corpus.template import load_template
from scripts import train_preset_tokenizer

FOLDER = Path(__file__).resolve().parents[2] / "qwen" / "presets" / "tokenizer"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


def tokens(tokenizer: Any, text: str) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [tokenizer.decode([token]) for token in ids]


def test_the_script_makes_the_shipped_files(tmp_path: Path):
    script = train_preset_tokenizer
    script.save(script.train(script.CORPUS.read_text("utf-8")), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_it_loads_without_torch_and_without_a_network():
    program = (
        "import sys, socket\n"
        "sys.modules['torch'] = None\n"
        "def refuse(*_): raise OSError('no network in this test')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from transformers import AutoTokenizer\n"
        f"print(len(AutoTokenizer.from_pretrained({str(FOLDER)!r})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "1024\n", done.stderr


def test_text_is_cut_as_qwen_does(tokenizer: Any):
    assert tokens(tokenizer, "12 345") == ["1", "2", " ", "3", "4", "5"]
    assert tokens(tokenizer, "7\n\n8") == ["7", "\n\n", "8"]
    assert tokens(tokenizer, "Input:\n07") == ["Input", ":\n", "0", "7"]


def test_any_text_survives(tokenizer: Any):
    for text in (" \t\r\n x  y ", "naïve 日本語 🙂 \x00\x7f", "def f(x):\n    return\n"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("é")["input_ids"]


def test_the_special_tokens_and_the_chat_template_are_those_of_chatml(tokenizer: Any):
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [1021, 1022, 1023]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|endoftext|>")
    assert tokens(tokenizer, "a<|im_end|>b") == ["a", "<|im_end|>", "b"]
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": " Hi\n"}]
    chat = "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == chat
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        == chat + "<|im_start|>assistant\n"
    )


def test_prompts_of_arc_have_as_many_tokens_as_with_the_published_tokenizer(
    tokenizer: Any, arc_tasks: Path
):
    """The expected values come from Qwen's tokenizer on the first test input of each task."""
    with (arc_tasks / "training.json").open("rb") as file:
        tasks = [item for item in parse_tasks(file, "a") if isinstance(item, Task)]
    prompts = [render(load_template("digits"), task, 0).text for task in tasks]
    counts = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    assert (min(counts), float(np.median(counts)), max(counts)) == (72, 786.0, 8390)
