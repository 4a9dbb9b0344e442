"""The tokenizer in qwen/presets, used as the job uses it: on the prompts of tasks."""

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
from corpus.template import load_template, shipped_templates
from scripts import train_preset_tokenizer

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "qwen" / "presets" / "tokenizer"
ARC = ROOT.parent / "shared" / "data" / "arc_agi_1" / "training.json"
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


def test_vocabulary_and_special_tokens(tokenizer: Any):
    assert len(tokenizer) == 1024
    assert sorted(tokenizer.get_vocab().values()) == list(range(1024))
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [1021, 1022, 1023]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|endoftext|>")
    assert tokenizer.bos_token is None
    for token in SPECIAL:
        assert tokens(tokenizer, f"a{token}b") == ["a", token, "b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0123\n45", ["0", "1", "2", "3", "\n", "4", "5"]),
        ("12 345", ["1", "2", " ", "3", "4", "5"]),
        ("7\n\n8", ["7", "\n\n", "8"]),
        ("Input:\n07", ["Input", ":\n", "0", "7"]),
        ("Output:\n", ["Output", ":\n"]),
    ],
)
def test_text_is_cut_as_qwen_does(tokenizer: Any, text: str, expected: list[str]):
    assert tokens(tokenizer, text) == expected


@pytest.mark.parametrize(
    "text",
    ["", " \t\r\n x  y ", "naïve café 日本語 🙂 \x00\x7f", "don't 'LL", "def f(x):\n    return\n"],
)
def test_any_text_survives(tokenizer: Any, text: str):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer(text + "e\u0301")["input_ids"] == tokenizer(text + "é")["input_ids"]


def test_the_chat_template_is_chatml(tokenizer: Any):
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": " Hi\n"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False)
    assert chat == "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n"
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        == chat + "<|im_start|>assistant\n"
    )


def example_tasks() -> list[Task]:
    tasks = []
    for path in sorted((ROOT / "examples" / "tasks").glob("*.json")):
        with path.open("rb") as file:
            for item in parse_tasks(file, path.name):
                assert isinstance(item, Task), item
                tasks.append(item)
    return tasks


@pytest.mark.parametrize("name", shipped_templates())
def test_every_cell_of_a_prompt_is_one_token(tokenizer: Any, name: str):
    template = load_template(name)
    for task in example_tasks():
        prompt = render(template, task, 0)
        text, cells = prompt.text, prompt.cells
        if prompt.messages:
            text = tokenizer.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in prompt.messages],
                tokenize=False,
                add_generation_prompt=prompt.add_generation_prompt,
            )
            cells = prompt.cells_within(text)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        token_at = {start: index for index, (start, _) in enumerate(encoded["offset_mapping"])}
        for offset, example, role, row, column in cells.tolist():
            index = token_at[offset]
            assert encoded["offset_mapping"][index] == (offset, offset + 1)
            pair = task.test[0] if example < 0 else task.train[example]
            grid = pair.output if role else pair.input
            assert grid is not None
            assert tokenizer.decode([encoded["input_ids"][index]]) == str(grid[row][column])


@pytest.mark.skipif(not ARC.is_file(), reason="ARC-AGI-1 is not beside the repository")
def test_prompts_of_arc_have_as_many_tokens_as_with_the_published_tokenizer(tokenizer: Any):
    """Minimum, median and maximum were counted with Qwen's own vocabulary, first test inputs."""
    with ARC.open("rb") as file:
        tasks = [item for item in parse_tasks(file, "a") if isinstance(item, Task)]
    template = load_template("digits")
    prompts = [render(template, task, 0).text for task in tasks]
    counts = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    assert (min(counts), float(np.median(counts)), max(counts)) == (72, 786.0, 8390)
