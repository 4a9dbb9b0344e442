import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from activation_dataset.prompts import Prompt
from corpus.parse import parse_tasks
from corpus.task import Document, Message, Pair, Task
from corpus.template import load_template
from qwen.source import open_model
from tests.conftest import ROOT
from transforms.shuffle_encoding import decode_item, decode_prompt, encode_item, encode_prompt
from transforms.tokenize_tasks import LengthLimit, prompts_of

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    tokens = draw(st.integers(0, 40))
    ids = draw(arrays.arrays(np.int32, tokens))
    return Prompt(draw(NAMES), draw(NAMES), ids, draw(arrays.arrays(np.int16, (tokens, 4))))


@given(prompts())
def test_a_prompt_comes_back_unchanged(prompt: Prompt):
    found = decode_prompt(encode_prompt(prompt))
    assert (found.sample_id, found.task_id) == (prompt.sample_id, prompt.task_id)
    assert found.token_ids.dtype == np.int32
    np.testing.assert_array_equal(found.token_ids, prompt.token_ids)
    np.testing.assert_array_equal(found.cells, prompt.cells)


@pytest.mark.parametrize(
    "item",
    [
        Task("t", "a.json", (Pair(((1, 2), (3, 4)), ((5,),)),), (Pair(((6,),), None),), "d4=3"),
        Document("d", "b.jsonl", "Grids, 42. \N{SNOWMAN}"),
        Document("m", "b.jsonl", None, (Message("user", "Why?"), Message("assistant", ""))),
    ],
    ids=["task", "text", "messages"],
)
def test_an_item_comes_back_unchanged(item: Task | Document):
    assert decode_item(encode_item(item)) == item


def test_little_is_shuffled():
    path = ROOT / "examples" / "tasks" / "connect.json"
    with path.open("rb") as stream:
        (task,) = parse_tasks(stream, path.name)
    assert isinstance(task, Task)
    tokenizer, limit = open_model("random:tiny").tokenizer(), LengthLimit(10_000, "reject")
    assert len(encode_item(task)) < len(json.dumps(json.loads(path.read_text()))) / 8
    for prompt in prompts_of(task, load_template("digits"), tokenizer, limit):
        assert isinstance(prompt, Prompt)
        assert len(encode_prompt(prompt)) < 1.5 * prompt.num_tokens
