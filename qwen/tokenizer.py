"""The tokenizer of a checkpoint, with exactly the token ids of `tokenizer.json`.

This does not use `AutoTokenizer`, which for some model types builds another tokenizer from the
vocabulary of `tokenizer.json` and drops its normalizer and pre-tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen.load_once import load_once

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
ADDED_TOKENS = "added_tokens.json"
SPECIAL_TOKENS = "special_tokens_map.json"
VOCABULARY = ("vocab.json", "merges.txt")
CHAT_TEMPLATE = "chat_template.json"
"""Chat template of a processor; the tokenizer's own template has precedence."""

NAMED_CHAT_TEMPLATES = "additional_chat_templates"
"""Folder of chat templates in addition to the default one, as `NAME.jinja`."""

FILES = (
    *(TOKENIZER, CONFIG, *VOCABULARY, ADDED_TOKENS, SPECIAL_TOKENS),
    *("chat_template.jinja", CHAT_TEMPLATE),
)
"""Files that determine token ids or the text of a chat, except the named chat templates."""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
_QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_QWEN2_END = "<|endoftext|>"
_ONE_DIGIT = re.compile(r"[^0-9]*[0-9][^0-9]*|<0x3[0-9]>")
_WRITE_ONE = (
    "Write one with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER), "
    "and check its token ids"
)


class TokenizerError(ValueError):
    """A tokenizer that is missing, damaged or ambiguous, or differs from the run's tokenizer."""


def tokenizer_fingerprint(folder: Path) -> str:
    """Return the SHA-256 (hex) of the names and contents of the tokenizer's files."""
    digest = hashlib.sha256()
    named = sorted(path.name for path in folder.glob(f"{NAMED_CHAT_TEMPLATES}/*.jinja"))
    for name in (*FILES, *(f"{NAMED_CHAT_TEMPLATES}/{each}" for each in named)):
        if (folder / name).exists():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()


def is_tokenizer(folder: Path) -> bool:
    """Return True if a folder has any vocabulary file of a tokenizer."""
    return any((folder / name).exists() for name in (TOKENIZER, *VOCABULARY))


@load_once
def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder once per process.

    Without `tokenizer.json`, `vocab.json` and `merges.txt` suffice if `tokenizer_config.json` names
    `Qwen2Tokenizer`.

    Raises:
        TokenizerError: if there is no tokenizer, or its files are damaged or contradict each other.
    """
    whole = (folder / TOKENIZER).is_file()
    if not whole and not all((folder / name).is_file() for name in VOCABULARY):
        # transformers would build a tokenizer without a vocabulary.
        raise TokenizerError(
            f"{folder}: there is no tokenizer. Put the {TOKENIZER} of the model next to its "
            f"weights. {_WRITE_ONE} if the model has its tokenizer in another format."
        )
    try:
        tokenizer = _load(folder, whole)
    except TokenizerError:
        raise
    except Exception as error:  # transformers raises any exception type for a damaged file.
        raise TokenizerError(
            f"{folder}: the tokenizer cannot be loaded ({type(error).__name__}: {error}). Copy the "
            "model's tokenizer again."
        ) from error
    return tokenizer


def digit_tokens(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of each digit, 0 to 9, with or without surrounding spaces."""
    found: list[list[int]] = [[] for _ in range(10)]
    for token, token_id in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if _ONE_DIGIT.fullmatch(token):
            text = str(tokenizer.decode([token_id])).strip()
            if re.fullmatch("[0-9]", text):
                found[int(text)].append(token_id)
    return found


def _load(folder: Path, whole: bool) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer

    classes = _transformers()
    config = _read_json(folder / CONFIG)
    if config.get("fast_tokenizer_files"):
        raise TokenizerError(
            f"{folder / CONFIG}: fast_tokenizer_files names files other than {TOKENIZER}; remove "
            f"the field if their contents are the same, or copy the right file to {TOKENIZER}"
        )
    if whole:
        stored = Tokenizer.from_file(str(folder / TOKENIZER))
        # Truncation and padding must not apply, nor add their tokens to the vocabulary.
        stored.no_truncation()
        stored.no_padding()
        tokenizer = classes[0].from_pretrained(
            folder, local_files_only=True, tokenizer_object=stored
        )
    elif (name := config.get("tokenizer_class")) in _QWEN2_CLASSES:
        # Named explicitly, because transformers would prefer a tokenizer.model.
        vocab, merges = (str(folder / name) for name in VOCABULARY)
        tokenizer = classes[1].from_pretrained(
            folder, local_files_only=True, vocab_file=vocab, merges_file=merges
        )
        stored = tokenizer.backend_tokenizer
    else:
        raise TokenizerError(
            f"{folder}: there is no {TOKENIZER}, and {CONFIG} has tokenizer_class {name!r}. "
            f"{' and '.join(VOCABULARY)} suffice only for {_QWEN2_CLASSES[0]}. {_WRITE_ONE}."
        )
    for file, token, token_id in _declared_tokens(folder, config):
        if (found := stored.token_to_id(token)) != token_id:
            raise _disagreement(folder / file, token, f"has id {token_id}", f"has id {found}")
    _check_pipeline(folder, stored, tokenizer.backend_tokenizer)
    if tokenizer.split_special_tokens:
        raise TokenizerError(
            f"{folder / CONFIG}: split_special_tokens is true, which changes the token ids of "
            f"{TOKENIZER}; remove the field if the model was trained without it"
        )
    # A chat template may contain these tokens. transformers gives every tokenizer of a Qwen2 model
    # the defaults of Qwen2Tokenizer, regardless of its tokenizer_class.
    for name in ("unk_token", "eos_token", "pad_token"):
        if name not in config and getattr(tokenizer, name) is None:
            setattr(tokenizer, name, _QWEN2_END if stored.token_to_id(_QWEN2_END) else None)
    _add_chat_template(folder, tokenizer)
    return tokenizer


@load_once
def _transformers() -> tuple[Any, Any]:
    """Import transformers once: its lazy modules break if two threads import them concurrently."""
    # transformers would warn on every start that PyTorch is not installed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    return PreTrainedTokenizerFast, Qwen2Tokenizer


def _check_pipeline(folder: Path, stored: Tokenizer, loaded: Tokenizer) -> None:
    """Check that transformers loaded the tokenizer of `tokenizer.json` without changes."""
    if getattr(stored.model, "dropout", None):
        raise TokenizerError(
            f"{folder / TOKENIZER}: the model has dropout {stored.model.dropout}, so token ids are "
            "random; set it to null"
        )
    ours, theirs = _added_tokens(stored), _added_tokens(loaded)
    for token in sorted(theirs):
        if (here := ours.get(token)) != (there := theirs[token]):
            files = (CONFIG, SPECIAL_TOKENS, ADDED_TOKENS)
            file = next((f for f in files if _mentions(_read_json(folder / f), token)), CONFIG)
            raise _disagreement(folder / file, token, _flags(there, here), _flags(here, there))
    for part in ("normalizer", "pre_tokenizer"):
        if _state(getattr(stored, part)) != _state(getattr(loaded, part)):
            raise TokenizerError(
                f"{folder}: transformers replaces the {part} of {TOKENIZER} because of a field of "
                f"{CONFIG}, such as fix_mistral_regex; remove the field"
            )


def _added_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, object]]:
    """Return the properties of the added tokens that determine token ids, by content."""
    return {
        each.content: {"id": token_id} | {name: getattr(each, name) for name in _FLAGS}
        for token_id, each in tokenizer.get_added_tokens_decoder().items()
    }


def _flags(token: dict[str, object] | None, other: dict[str, object] | None) -> str:
    """Describe the properties of an added token that differ from another one."""
    if token is None or other is None:
        return "is not an added token" if token is None else "is an added token"
    different = [f"{name} {token[name]}" for name in token if token[name] != other[name]]
    return f"has {', '.join(different)}"


def _state(part: Any) -> bytes | None:
    return None if part is None else part.__getstate__()


def _declared_tokens(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yield file, content and id of each token that is listed outside of `tokenizer.json`."""
    for token_id, token in config.get("added_tokens_decoder", {}).items():
        yield CONFIG, token["content"], int(token_id)
    for token, token_id in _read_json(folder / ADDED_TOKENS).items():
        yield ADDED_TOKENS, token, token_id


def _mentions(value: object, token: str) -> bool:
    if isinstance(value, dict):
        return token in value or any(_mentions(each, token) for each in value.values())
    if isinstance(value, list):
        return any(_mentions(each, token) for each in value)
    return value == token


def _disagreement(file: Path, token: str, there: str, here: str) -> TokenizerError:
    return TokenizerError(
        f"{file}: the token {token!r} {there}, but {here} in {TOKENIZER}, which determines the "
        f"token ids. Remove it from {file.name}, or save the tokenizer again with the tokens that "
        "the model was trained with."
    )


def _add_chat_template(folder: Path, tokenizer: Any) -> None:
    """Set the chat template of the processor if the tokenizer has none."""
    template = _read_json(folder / CHAT_TEMPLATE).get("chat_template")
    if tokenizer.chat_template is None and template is not None:
        if not isinstance(template, str):
            raise TokenizerError(f"{folder / CHAT_TEMPLATE}: chat_template is not a string")
        tokenizer.chat_template = template


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content
