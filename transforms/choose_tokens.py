"""Choice of the tokens whose vectors are stored or averaged (`--tokens`).

A choice is one or more terms joined by `&`. A token must fulfill all of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from activation_dataset.prompts import ROLES, TEST_PAIR, UNKNOWN_CELL, Prompt

CHAT_ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of messages that are terms; `role:NAME` is the term of any other role."""

Mask = NDArray[np.bool_]

_NUMBERED = ("last", "first", "every", "skip_first")
_CELLS = ("cells", "text", "input", "output", "test_input", "train_input")
TERMS = (
    *("all", "no_special", *(f"{name}:N" for name in _NUMBERED), "sample:FRACTION[:SEED]"),
    *(*_CELLS, *CHAT_ROLES, "role:NAME"),
)
"""The forms of a term."""


class TokenChoiceError(ValueError):
    """An invalid choice; the message names the term and the allowed ones."""


class UnknownTokensError(ValueError):
    """A sample without the information that a term needs; `reason` says why it is rejected."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Term:
    """One condition: its name, and its number, seed or role if any."""

    name: str
    number: float = 0
    seed: int = 0
    role: str = ""


@dataclass(frozen=True)
class TokenChoice:
    """Terms that a chosen token fulfills; without terms, all tokens are chosen."""

    terms: tuple[Term, ...]

    @property
    def needs_turns(self) -> bool:
        """True if a term asks for the role of a chat message."""
        return any(term.name == "role" for term in self.terms)

    @property
    def needs_special_ids(self) -> bool:
        """True if a term asks which tokens are special."""
        return any(term.name == "no_special" for term in self.terms)


ALL_TOKENS = TokenChoice(())


def parse_choice(text: str) -> TokenChoice:
    """Parse terms joined by `&`.

    Raises:
        TokenChoiceError: if a term is invalid.
    """
    terms = [_parse_term(word.strip()) for word in text.split("&")]
    return TokenChoice(tuple(term for term in terms if term.name != "all"))


def _parse_term(word: str) -> Term:
    name, colon, value = word.partition(":")
    if not colon:
        if name in CHAT_ROLES:
            return Term("role", role=name)
        if name in ("all", "no_special", *_CELLS):
            return Term(name)
    elif name == "role" and value:
        return Term("role", role=value)
    elif name in _NUMBERED and re.fullmatch(r"[1-9]\d{0,8}", value):
        return Term(name, int(value))
    elif match := re.fullmatch(r"sample:((?=.*[1-9])0?\.\d{1,9}|1)(?::(\d{1,9}))?", word):
        return Term("sample", float(match[1]), int(match[2] or 0))
    raise TokenChoiceError(
        f"{word!r} is not a choice of tokens; give one or more of {', '.join(TERMS)}, joined by &, "
        "such as 'assistant&no_special' or 'every:8'"
    )


def choose(prompt: Prompt, choice: TokenChoice, special_ids: frozenset[int]) -> Prompt:
    """Keep only the chosen tokens of a prompt that fulfill every term.

    Args:
        prompt: prompt with some or all of its tokens chosen.
        choice: terms to fulfill.
        special_ids: ids of the tokens that `no_special` leaves out, besides a prepended token.

    Raises:
        UnknownTokensError: if the cells or turns that a term asks for are unknown.
    """
    if not choice.terms:
        return prompt
    chosen = prompt.chosen
    for term in choice.terms:
        if term.name == "no_special":
            chosen &= ~np.isin(prompt.token_ids, [*special_ids])
            chosen[: int(prompt.prepended_bos)] = False
        else:
            chosen &= _MASKS[term.name](prompt, term)
    positions = np.flatnonzero(chosen).astype(np.int32)
    return replace(prompt, positions=None if chosen.all() else positions)


def _of_positions(prompt: Prompt, term: Term) -> Mask:
    positions, number = np.arange(prompt.num_tokens), int(term.number)
    if term.name == "last":
        return positions >= prompt.num_tokens - number
    if term.name == "every":
        return positions % number == 0
    return (positions < number) == (term.name == "first")


def _of_sample(prompt: Prompt, term: Term) -> Mask:
    """Choose by a hash of the document and the position in it, independent of windows."""
    key = prompt.sample_id
    if not key.endswith(f"#{prompt.task_id}"):  # The document's own id may end like a window's.
        key = key.removesuffix(f"@{prompt.offset}")
    digest = hashlib.blake2b(f"{term.seed}\0{key}".encode(), digest_size=8).digest()
    first = prompt.offset - int(prompt.prepended_bos)
    numbers = np.arange(first, first + prompt.num_tokens, dtype=np.int64).view(np.uint64)
    mixed = _mixed(numbers + np.frombuffer(digest, "<u8")) >> np.uint64(11)
    return mixed < np.uint64(term.number * 2**53)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the output of SplitMix64 (Steele, Lea, Flood 2014) for each state."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _of_cells(prompt: Prompt, term: Term) -> Mask:
    example, role = prompt.cells[:, 0], prompt.cells[:, 1]
    if (role == UNKNOWN_CELL).any():
        raise UnknownTokensError(
            "unknown_cells",
            f"--tokens {term.name}: the tokenizer does not give each grid cell a token of its own; "
            "leave that term out",
        )
    if term.name in ("cells", "text"):
        return (role >= 0) == (term.name == "cells")
    chosen: Mask = role == ROLES.index(term.name.removeprefix("test_").removeprefix("train_"))
    if "_" in term.name:
        chosen &= (example == TEST_PAIR) == term.name.startswith("test_")
    return chosen


def _of_role(prompt: Prompt, term: Term) -> Mask:
    if prompt.turns is None:
        return np.zeros(prompt.num_tokens, bool)
    wanted = [number for number, role in enumerate(prompt.roles) if role == term.role]
    return np.isin(prompt.turns, wanted)


_MASKS: Mapping[str, Callable[[Prompt, Term], Mask]] = {
    **dict.fromkeys(_NUMBERED, _of_positions),
    **dict.fromkeys(_CELLS, _of_cells),
    "sample": _of_sample,
    "role": _of_role,
}
