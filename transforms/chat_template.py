"""Rendering of messages by the tokenizer's chat template, with a check for missing content.

A chat template silently drops what it does not know, such as a role, or writes a list as Python
prints it. The model would see less than the record holds, so the job rejects such a chat. A
template may leave out what it knows, such as the reasoning of earlier turns.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import jinja2

from corpus.prompt import RenderedPrompt
from corpus.task import Message
from transforms.chat_turns import (
    Span,
    has_generation_marks,
    spans_of_generation,
    spans_of_messages,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RECORD_KEYS = {"tools", "documents"}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_SPECIAL_KEYS = ("tool_calls", "function_call", *_REASONING)
_REASONING_ALIASES = ("reasoning_content", "thinking")
"""Names that transformers uses for each of `_REASONING`."""

_REFUSALS = (
    *(jinja2.TemplateError, TypeError, ValueError),
    *(ArithmeticError, LookupError, RecursionError),
)
"""Errors that a chat template raises on purpose or for content of an unexpected type."""


class ChatTemplateError(ValueError):
    """Messages that the chat template refuses or does not show, or a missing chat template."""

    reason: ClassVar[str] = "chat_template"


@dataclass(frozen=True)
class ChatText:
    """Text of a chat, as the tokenizer's chat template writes it.

    Attributes:
        text: text of the whole chat.
        spans: contents of the messages in the text; None if they cannot be told apart.
    """

    text: str
    spans: list[Span] | None


def chat_text(prompt: RenderedPrompt, tokenizer: PreTrainedTokenizerBase) -> ChatText:
    """Return the messages of a prompt as the tokenizer's chat template writes them.

    Raises:
        ChatTemplateError: if there is no chat template, or if it refuses the messages or drops
            content that it does not know; names the field.
    """
    if not tokenizer.chat_template:
        raise ChatTemplateError(
            "the model's tokenizer has no chat template; use a prompt template with chat = false "
            "and documents of text, or put a chat_template.jinja next to the tokenizer"
        )
    messages, arguments = list(prompt.messages), dict(prompt.template_arguments)
    own = inspect.signature(tokenizer.apply_chat_template).parameters
    if taken := (arguments.keys() - _RECORD_KEYS) & own.keys():
        raise ChatTemplateError(
            f"chat_template_kwargs.{min(taken)} is not an argument of a chat template"
        )

    def render(messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=prompt.add_generation_prompt,
                **{"strftime_now": None, **arguments},
            )
        )

    try:
        source = tokenizer.get_chat_template(tools=arguments.get("tools"))
        fault = next(_unknown_keys(messages, arguments, source), "")
        if not fault:
            text = render(messages, arguments)
            marked = _marked(messages, arguments)
            shown = render(marked.messages, marked.arguments)
            fault = next(
                itertools.chain(_printed_by_python(marked, shown), marked.unseen(shown)), ""
            )
            spans = spans_of_messages(messages, text, lambda given: render(given, arguments))
            if spans is not None and has_generation_marks(source):
                spans = _with_generation(spans, messages, arguments, prompt, tokenizer)
    except _REFUSALS as error:
        roles = ", ".join(message["role"] for message in messages)
        fault = f"refuses the messages ({roles}): {error}{_unusual_content(messages)}"
        fault += _clock(tokenizer)
        raise ChatTemplateError(f"the tokenizer's chat template {fault}") from error
    if fault:
        raise ChatTemplateError(f"the tokenizer's chat template {fault}")
    return ChatText(text, spans)


def _with_generation(
    spans: Sequence[Span],
    messages: Sequence[Message],
    arguments: Mapping[str, Any],
    prompt: RenderedPrompt,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Span] | None:
    """Replace the spans of the assistant by the text that the chat template marks as generated."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        conversations=[list(messages)],
        chat_template=tokenizer.get_chat_template(tools=arguments.get("tools")),
        return_assistant_tokens_mask=True,
        add_generation_prompt=prompt.add_generation_prompt,
        **{**tokenizer.special_tokens_map, "strftime_now": None, **arguments},
    )
    generated = spans_of_generation(messages, rendered[1][0])
    if generated is None:
        return None
    others = [span for span in spans if messages[span[0]]["role"] != "assistant"]
    return sorted(others + generated, key=lambda span: span[1])


def _clock(tokenizer: PreTrainedTokenizerBase) -> str:
    if "strftime_now" not in str(tokenizer.chat_template):
        return ""
    return (
        "; strftime_now, the current date, is not given to it, because the tokens would change "
        "from day to day: set the variable that it reads instead, such as date_string, in "
        "chat_template_kwargs, or write a date into the chat template"
    )


def _unusual_content(messages: Sequence[Message]) -> str:
    for index, message in enumerate(messages):
        if not isinstance(content := message.get("content"), str):
            seen = "missing or null" if content is None else "a list"
            return f"; messages[{index}].content is {seen}, write it as text if that is the cause"
    return ""


def _unknown_keys(
    messages: Sequence[Message], arguments: Mapping[str, Any], source: str
) -> Iterator[str]:
    """Yield the keys with special meaning that the source of a chat template never names."""
    keys = []
    for name, value in arguments.items():
        if value not in (None, []):
            where = name if name in _RECORD_KEYS else f"chat_template_kwargs.{name}"
            keys.append((where, (name,)))
    for index, message in enumerate(messages):
        for name in _SPECIAL_KEYS:
            if message.get(name):
                aliases = _REASONING_ALIASES if name in _REASONING else ()
                keys.append((f"messages[{index}].{name}", (name, *aliases)))
    for where, names in keys:
        if not re.search(rf"\b({'|'.join(map(re.escape, names))})\b", source):
            yield f"does not read {where}; remove it, or write it into the content of a message"


@dataclass(frozen=True)
class _Marked:
    """A chat in which each content and each function name is a unique word.

    The original texts would prove nothing: a short one may occur elsewhere, and a chat template may
    strip white space or the reasoning of earlier turns from a long one.
    """

    messages: list[Message]
    arguments: dict[str, Any]
    words: dict[str, str]

    def unseen(self, text: str) -> Iterator[str]:
        """Yield the places of words that the chat template leaves out."""
        for word, where in self.words.items():
            if word not in text:
                yield f"does not show {where}"


def _marked(messages: Sequence[Message], arguments: Mapping[str, Any]) -> _Marked:
    marked = _Marked(copy.deepcopy([*messages]), copy.deepcopy({**arguments}), {})

    def mark(holder: dict[str, Any], key: str, where: str) -> None:
        if isinstance(holder.get(key), str) and holder[key].strip():
            holder[key] = word = f"word{len(marked.words)}shown"
            marked.words[word] = where

    for index, message in enumerate(marked.messages):
        where, role = f"messages[{index}]", message["role"]
        mark(message, "content", f"{where}.content ({role})")
        parts = message["content"] if isinstance(message.get("content"), list) else ()
        for number, part in enumerate(parts):
            mark(part, "text", f"{where}.content[{number}] ({role})")
        for number, call in enumerate(message.get("tool_calls", ())):
            mark(call.get("function", call), "name", f"{where}.tool_calls[{number}]")
    for index, tool in enumerate(marked.arguments.get("tools", ())):
        function = tool.get("function", tool)
        if isinstance(function, dict):
            mark(function, "name", f"tools[{index}]")
    return marked


def _printed_by_python(chat: _Marked, text: str) -> Iterator[str]:
    """Yield the lists and objects that the chat shows as Python prints them, not as JSON."""
    for name, value in {"messages": chat.messages, **chat.arguments}.items():
        for where, part in _containers(value, name):
            if str(part) in text and str(part) != json.dumps(part, ensure_ascii=False):
                yield f"writes {where} as Python prints it, not as text or JSON; write it as text"


def _containers(value: object, where: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        inner = ((f"{where}.{key}", each) for key, each in value.items())
    elif isinstance(value, list):
        inner = ((f"{where}[{index}]", each) for index, each in enumerate(value))
    else:
        return
    yield where, value
    for place, each in inner:
        yield from _containers(each, place)
