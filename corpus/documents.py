"""Read the text or the chat of a record in the formats of datasets on the Hugging Face Hub.

The formats::

    {"text": "..."}
    {"messages": [{"role", "content", ...}, ...]}   a chat; also `conversations` or `conversation`
    {"conversations": [{"from", "value"}, ...]}     ShareGPT: `human` is user, `gpt` assistant
    {"prompt": "...", "completion": "..."}          TRL: two texts, or two lists of messages
    {"instruction", "input", "output", "history"}   Alpaca: alternating user and assistant messages
    {"input_ids": [...]} or {"tokens": [...]}       token ids, used unchanged

If a record with a text or messages also has a prompt or an instruction, only the text or the
messages are read. A chat also uses the record's `tools`, `documents`, `chat_template_kwargs`, and
`system` or `system_prompt`.
"""

from collections.abc import Mapping
from typing import Any

from corpus.messages import check_json, from_json_text, shown, to_messages, to_text
from corpus.task import Document, Message, Rejection

CHAT_KEYS = ("messages", "conversations", "conversation")
ID_LIST_KEYS = ("input_ids", "tokens")
DOCUMENT_KEYS = (
    *CHAT_KEYS,
    *("text", "prompt", "instruction", "chosen", "rejected"),
    *ID_LIST_KEYS,
)

_SYSTEM_KEYS = ("system", "system_prompt")
_OPTIONS = ("tools", "documents", "chat_template_kwargs")
_REFUSED = ("functions",)
_ANSWERS = ("response", "output")
MAX_TOKEN_ID = 2**31 - 1

_CHANGE_WHAT_IDS_MEAN = ("seq_lengths", "cu_seqlens", "inputs_embeds", "pixel_values")
_BESIDE_IDS = ("attention_mask", "position_ids", "token_type_ids", *_CHANGE_WHAT_IDS_MEAN)
"""Keys of a model's batch. Keys that would change the activations are refused."""

OTHER_KEYS = (
    *("completion", "response", "input", "output", "history"),
    *(*_SYSTEM_KEYS, *_OPTIONS, *_REFUSED),
    *_BESIDE_IDS,
)
"""Keys that are read only together with one of `DOCUMENT_KEYS`."""


def to_document(
    record: Mapping[Any, Any], source: str, record_id: str, text_field: str | None
) -> Document:
    """Read a document from a record with one of `DOCUMENT_KEYS`, or with `text_field`.

    Args:
        record: record without keys whose value is null.
        source: name of the record's file.
        record_id: id of the record.
        text_field: key of the only content to read, a text or messages; `a.b` is `b` in `a`. None
            to read any known content.

    Raises:
        Rejection: the content is invalid, or the record has several contents.
    """
    if text_field:
        key, value = text_field, field_of(record, text_field)
        if value is None:
            keys = shown([*filter(None, record)])
            detail = f"--text_field {key}: the record has no such field; its keys are {keys}"
            raise Rejection("no_text_field", detail)
    else:
        key, value = _content(record)
    if key in ID_LIST_KEYS or _is_id_list(value):
        folder, dot, _ = key.rpartition(".")
        beside = field_of(record, folder) if dot and key not in record else record
        beside = beside if isinstance(beside, Mapping) else record
        return Document(record_id, source, None, token_ids=_token_ids(beside, key, value))
    if isinstance(value, list):
        messages = _with_system(record, to_messages(value, key), key)
        return Document(record_id, source, None, messages, _template_arguments(record))
    if key in CHAT_KEYS and not text_field:
        raise Rejection("bad_message", f"{key}: {shown(value)} is not a list of messages")
    text = to_text(value, key, "bad_text")
    if not text.strip():
        raise Rejection("empty_text", f"{key}: {shown(text)} contains no text")
    return Document(record_id, source, text)


def field_of(record: Mapping[Any, Any], name: str) -> object:
    """Return the value of a key or of a path of keys joined by dots; None if there is none."""
    if name in record:
        return record[name]
    first, dot, rest = name.partition(".")
    inner = record.get(first) if dot else None
    return field_of(inner, rest) if isinstance(inner, Mapping) else None


def _content(record: Mapping[Any, Any]) -> tuple[str, object]:
    """Return the key of the record's content, and its value."""
    whole = [key for key in (*CHAT_KEYS, "text") if key in record]
    # In a record with a text, these keys may hold a count or words.
    whole += [
        key
        for key in ID_LIST_KEYS
        if _is_id_list(record.get(key)) or (key == "input_ids" and record.get(key))
    ]
    parts = [key for key in ("prompt", "instruction") if key in record]
    if not whole and (answers := [key for key in ("chosen", "rejected") if key in record]):
        raise Rejection(
            "preference",
            f"{' and '.join(answers)}: a record of preferences has several answers; choose one "
            "with --text_field, or write each as its own record",
        )
    found = whole or parts or [key for key in ID_LIST_KEYS if key in record]
    filled = [key for key in found if record[key]]
    if len(filled) > 1:
        raise Rejection(
            "ambiguous",
            f"the record has {' and '.join(filled)}; choose one with "
            + " or ".join(f"--text_field {key}" for key in filled),
        )
    key = (filled or found)[0]
    if key == "instruction":
        return key, _alpaca_messages(record)
    return key, _with_completion(record) if key == "prompt" else record[key]


def _is_id_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and type(value[0]) is int


def _token_ids(record: Mapping[Any, Any], key: str, value: object) -> tuple[int, ...]:
    """Return the list of token ids under `key` of `record`, or reject it if it has padding."""
    if not isinstance(value, list) or not value:
        raise Rejection("bad_token_ids", f"{key}: {shown(value)} is not a list of token ids")
    for place, each in enumerate(value):
        if type(each) is not int or not 0 <= each <= MAX_TOKEN_ID:
            raise Rejection("bad_token_ids", f"{key}[{place}]: {shown(each)} is not a token id")
    if changing := [each for each in _CHANGE_WHAT_IDS_MEAN if record.get(each) is not None]:
        raise Rejection(
            "bad_token_ids",
            f"{changing[0]}: not supported together with {key}, because it changes the model's "
            "results; write each sample as its own record, with token ids only",
        )
    if any(record.get("token_type_ids") or ()):
        raise Rejection(
            "bad_token_ids", "token_type_ids: not all 0; no supported model uses token types"
        )
    mask, positions = record.get("attention_mask"), record.get("position_ids")
    if mask is not None and mask != [1] * len(value):
        raise Rejection(
            "bad_token_ids",
            f"attention_mask: must be {len(value)} ones, one for each id of {key}; write the ids "
            "without padding",
        )
    if positions is not None and positions != list(range(len(value))):
        raise Rejection(
            "bad_token_ids",
            f"position_ids: must be 0, 1, ..., {len(value) - 1}; the positions of a sample begin "
            "with 0, so write each sample as its own record",
        )
    return tuple(value)


def _alpaca_messages(record: Mapping[Any, Any]) -> list[object]:
    """Return the turns of `history`, then the instruction with its input, then the output."""
    if "output" not in record:
        raise Rejection(
            "bad_chat",
            "output: missing; Alpaca's columns are instruction, input and output. For other data, "
            "name the column to read with --text_field",
        )
    history = record.get("history", [])
    if not isinstance(history, list) or not all(
        isinstance(turn, list) and len(turn) == 2 for turn in history
    ):
        raise Rejection("bad_chat", f"history: {shown(history)} is not [[user, assistant], ...]")
    instruction, given, output = (
        to_text(record.get(key, ""), key, "bad_text") for key in ("instruction", "input", "output")
    )
    question = f"{instruction}\n{given}" if given else instruction
    texts = [text for turn in history for text in turn] + [question, output]
    return [
        {"role": ("user", "assistant")[index % 2], "content": text}
        for index, text in enumerate(texts)
    ]


def _with_completion(record: Mapping[Any, Any]) -> object:
    """Return a prompt followed by its completion: two texts, or two lists of messages (TRL)."""
    prompt = record["prompt"]
    if isinstance(prompt, str):
        for key in (*_SYSTEM_KEYS, *_OPTIONS, *_REFUSED):
            if record.get(key):
                detail = f"{key}: belongs to a chat, but prompt is text; write a list of messages"
                raise Rejection("bad_chat", detail)
    if "completion" in record:
        completion = record["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            return prompt + completion
        if isinstance(prompt, list) and isinstance(completion, list):
            return prompt + completion
        raise Rejection(
            "bad_text", "prompt and completion: must be two texts, or two lists of messages"
        )
    if answers := [key for key in _ANSWERS if key in record]:
        raise Rejection(
            "ambiguous",
            f"{answers[0]}: not supported together with prompt; rename it to completion to append "
            "it, or read only the prompt with --text_field prompt",
        )
    return prompt


def _with_system(
    record: Mapping[Any, Any], messages: tuple[Message, ...], key: str
) -> tuple[Message, ...]:
    """Put the record's system prompt first; ShareGPT and Alpaca store it in a separate key."""
    for name in _SYSTEM_KEYS:
        system = to_text(record.get(name, ""), name, "bad_chat")
        has_one = messages[0]["role"] in ("system", "developer")
        if not system.strip() or (has_one and messages[0].get("content") == system):
            continue
        if has_one or key not in ("conversations", "instruction"):
            detail = f"{name}: not the first message of {key}; keep the system prompt only there"
            raise Rejection("bad_chat", detail)
        messages = ({"role": "system", "content": system}, *messages)
    return messages


def _template_arguments(record: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the chat template's arguments other than the messages."""
    for key in _REFUSED:
        if record.get(key):
            raise Rejection("bad_chat", f"{key}: not supported; write tools instead")
    arguments: dict[str, Any] = {}
    for key in _OPTIONS:
        value = record.get(key)
        if isinstance(value, str):
            value = from_json_text(value, key, "bad_chat") if value.strip() else None
        if value is None:
            continue
        check_json(value, key, "bad_chat")
        if key == "chat_template_kwargs":
            if not isinstance(value, dict):
                raise Rejection("bad_chat", f"{key}: {shown(value)} is not an object")
            if taken := value.keys() & {"messages", *_OPTIONS}:
                raise Rejection(
                    "bad_chat", f"{key}: {min(taken)} must be a key of the record, not of {key}"
                )
            arguments |= value
        elif isinstance(value, list) and all(isinstance(each, dict) for each in value):
            arguments[key] = value
        else:
            raise Rejection("bad_chat", f"{key}: {shown(value)} is not a list of objects")
    return arguments
