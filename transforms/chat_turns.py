"""Assignment of the tokens of a chat to its messages.

A token belongs to a message if it shows content of the message; tokens that show only text that the
chat template writes around it do not. If the template marks generated text (`{% generation %}`),
the marks determine the tokens of the assistant.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from activation_dataset.prompts import NO_TURN
from corpus.task import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int, int]
"""Number of a message, and start and end of its content in the text of the chat."""

_GENERATION = re.compile(r"\{%-?\s*generation\b")


def spans_of_messages(
    messages: Sequence[Message], text: str, render: Callable[[Sequence[Message]], str]
) -> list[Span] | None:
    """Find the contents of messages in the text of their chat.

    The chat is rendered once more with a mark in place of each content, which shows the text around
    the contents. The result is None if the chat's text is not these pieces with the contents
    between them, for example if the template rewrites earlier turns.

    Args:
        messages: messages of the chat.
        text: text of the chat.
        render: the chat template.
    """
    marked, contents = copy.deepcopy([*messages]), list[tuple[int, str]]()
    for number, message in enumerate(marked):
        content = message.get("content")
        holders = [(message, "content")] if isinstance(content, str) else []
        if isinstance(content, list):
            holders = [(part, "text") for part in content]
        for holder, key in holders:
            if holder[key].strip():
                contents.append((number, holder[key]))
                holder[key] = f"mark{len(contents)}here"
    around = re.split("(mark[0-9]+here)", render(marked))
    if around[1::2] != [f"mark{n}here" for n in range(1, len(contents) + 1)]:
        return None
    spans, end = list[Span](), 0
    if not text.startswith(around[0]):
        return None
    end = len(around[0])
    for (number, content), following in zip(contents, around[2::2], strict=True):
        # Templates may strip white space at the ends of a content.
        forms = (content, content.strip(), content.lstrip(), content.rstrip())
        ends = {end + len(form) for form in forms if text.startswith(form + following, end)}
        if len(ends) != 1:
            return None
        (stop,) = ends
        spans.append((number, end, stop))
        end = stop + len(following)
    return spans if end == len(text) else None


def spans_of_generation(
    messages: Sequence[Message], marks: Sequence[tuple[int, int]]
) -> list[Span] | None:
    """Return the message of the assistant for each mark of generated text, in order.

    The result is None if messages and marks do not correspond one to one.
    """
    own = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if len(own) != len(marks):
        return None
    return [(number, *mark) for number, mark in zip(own, marks, strict=True)]


def has_generation_marks(template: str) -> bool:
    """Return True if a chat template marks generated text."""
    return _GENERATION.search(template) is not None


def shows_places_of(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return False if the tokenizer changes the text, so that offsets are unknown."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is None or normalizer.normalize_str(text) == text


def turns_of(spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> np.ndarray | None:
    """Return the number of the message of each token of a chat, [num_tokens] int16.

    A token that shows content of a message and text of the template, such as a space before the
    first word, belongs to the message, as in the masks of transformers. The result is None if a
    token shows contents of two messages.

    Args:
        spans: contents of the messages in the chat's text.
        offsets: first character and end of each token in the chat's text.
    """
    first, last = np.array(offsets, np.int64).reshape(-1, 2).T
    turns = np.full(len(first), NO_TURN, np.int16)
    for number, start, end in spans:
        within = (first >= start) & (last <= end)  # Also tokens without characters.
        shown = within | ((first < end) & (last > start))
        if np.any(shown & (turns != NO_TURN) & (turns != number) & (first < last)):
            return None
        turns[shown] = number
    return turns
