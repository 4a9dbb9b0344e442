from typing import Any

import numpy as np
import pytest

from activation_dataset.prompts import Prompt
from corpus.prompt import RenderedPrompt, render
from corpus.task import Document, Message
from corpus.template import load_template
from qwen.source import open_model
from transforms.tokenize_tasks import tokenize

QWEN = (
    "{%- if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
    "{%- endif %}{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)
LLAMA = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}</s>{% endfor %}"
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
DROPS_THOUGHTS = (
    "{% for m in messages %}[{{ m.role }}]"
    "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}{% endfor %}"
)
CHAT = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "system\nuser? 42"},
    {"role": "assistant", "content": "  42\n\n"},
    {"role": "user", "content": "42"},
    {"role": "assistant", "content": "Yes."},
)


def prompt_of(template: str, messages: tuple[Message, ...]) -> Prompt:
    """Return the tokens of a chat with this chat template."""
    tokenizer = open_model("random:tiny").tokenizer()
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        return tokenize(
            render(load_template("digits"), Document("d", "a.json", None, messages)), tokenizer
        )
    finally:
        tokenizer.chat_template = before


def turns_of(template: str, messages: tuple[Message, ...]) -> tuple[list[str], tuple[str, ...]]:
    """Return the text of the tokens of each message, and the roles."""
    tokenizer, prompt = open_model("random:tiny").tokenizer(), prompt_of(template, messages)
    if prompt.turns is None:
        return [], prompt.roles
    texts = [
        str(tokenizer.decode(prompt.token_ids[prompt.turns == number]))
        for number in range(len(messages))
    ]
    return texts, prompt.roles


@pytest.mark.parametrize("template", [QWEN, LLAMA], ids=["qwen", "stripping"])
def test_turns_are_the_contents(template: str) -> None:
    texts, roles = turns_of(template, CHAT)
    assert roles == ("system", "user", "assistant", "user", "assistant")
    contents = [message["content"] for message in CHAT]
    expected = [text.strip() for text in contents] if template == LLAMA else contents
    # A newline of the content may share a token with one of the template.
    assert [text.strip() for text in texts] == [text.strip() for text in expected]


def test_the_template_s_own_marks_tell_what_the_assistant_generates() -> None:
    texts, _ = turns_of(MARKED, CHAT)
    assert texts == [
        *("Be brief.", "system\nuser? 42", "  42\n\n<|im_end|>", "42", "Yes.<|im_end|>"),
    ]


SPACED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %} {{ m.content }}"
    "{% endgeneration %}{% else %}[{{ m.role }}]: {{ m.content }}{% endif %}</s>{% endfor %}"
)


@pytest.mark.parametrize("answer", ["the", "a", "in the", "42", "(a)"])
def test_the_tokens_of_an_answer_are_those_of_transformers(answer: str) -> None:
    messages = [{"role": "user", "content": "the"}, {"role": "assistant", "content": answer}]
    tokenizer: Any = open_model("random:tiny").tokenizer()
    reference: Any = tokenizer.apply_chat_template(
        messages, chat_template=SPACED, return_dict=True, return_assistant_tokens_mask=True
    )
    expected = np.flatnonzero(reference["assistant_masks"])
    prompt = prompt_of(SPACED, tuple(messages))
    np.testing.assert_array_equal(prompt.token_ids, reference["input_ids"])
    assert prompt.turns is not None
    np.testing.assert_array_equal(np.flatnonzero(prompt.turns == 1), expected)


def test_a_content_shares_its_first_token_with_a_space_of_the_template() -> None:
    spaced = SPACED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    for words in ("the", "a", "in the"):
        messages = ({"role": "user", "content": words}, {"role": "assistant", "content": words})
        assert [text.strip() for text in turns_of(spaced, messages)[0]] == [words, words]


def test_a_token_with_contents_of_two_messages_leaves_the_turns_unknown() -> None:
    joined = "{% for m in messages %}{{ m.content }}{% endfor %}"
    messages = ({"role": "user", "content": "t"}, {"role": "assistant", "content": "he"})
    assert turns_of(joined, messages) == ([], ())


def test_a_template_that_rewrites_turns_leaves_them_unknown() -> None:
    thought = {"role": "assistant", "content": "hm</think>42"}
    assert turns_of(DROPS_THOUGHTS, (CHAT[1], thought, CHAT[3])) == ([], ())
    assert turns_of(DROPS_THOUGHTS, (CHAT[1], CHAT[2], CHAT[3]))[1] == ("user", "assistant", "user")


def test_cells_and_turns_of_a_task() -> None:
    from tests.transforms.test_tokenize_tasks import CHAT as TEMPLATE
    from tests.transforms.test_tokenize_tasks import TASK

    tokenizer = open_model("random:tiny").tokenizer()
    prompt = tokenize(render(TEMPLATE, TASK), tokenizer)
    assert prompt.turns is not None
    assert prompt.roles == ("system", "user")
    shows_cell = prompt.cells[:, 0] != -1
    shows_cell |= prompt.cells[:, 1] >= 0
    assert (prompt.turns[shows_cell] == 1).all()
    assert not np.array_equal(shows_cell, prompt.turns == 1)


def test_a_plain_text_has_no_turns() -> None:
    plain = RenderedPrompt("42", (), np.empty((0, 5), np.int32))
    prompt = tokenize(plain, open_model("random:tiny").tokenizer())
    assert (prompt.turns, prompt.roles) == (None, ())
