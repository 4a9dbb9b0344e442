"""Messages of a chat: JSON objects that keep all their keys, after validation.

A message is `{"role", "content", ...}`, or `{"from", "value"}` in the format of ShareGPT. The chat
template selects the keys that the model sees. Content other than text, such as an image, is
rejected.
"""

import reprlib
from collections.abc import Sequence
from typing import Any

from corpus.json_records import DUPLICATE, parse_line
from corpus.task import Message, Rejection

_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
}
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
_CHECKED_KEYS = ("role", "content", "from", "value", *_INSTEAD_OF_CONTENT)
_MAX_DEPTH = 50

_SHORT = reprlib.Repr()
_SHORT.maxstring = 60
_SHORT.maxlevel = 3
shown = _SHORT.repr


def to_messages(value: Sequence[object], key: str) -> tuple[Message, ...]:
    """Read a list of messages, which needs a text or a tool call; `key` names it in errors."""
    messages = tuple(_to_message(each, f"{key}[{index}]") for index, each in enumerate(value))
    if not any(map(_says_something, messages)):
        raise Rejection("empty_text", f"{key}: {shown(value)} contains no text")
    return messages


def _says_something(message: Message) -> bool:
    content = message.get("content", "")
    texts = [part["text"] for part in content] if isinstance(content, list) else [content]
    return any(text.strip() for text in texts) or bool(message.get("tool_calls"))


def _to_message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise Rejection(
            "bad_message", f'{where}: {shown(value)} is not {{"role": ..., "content": ...}}'
        )
    message = _json_object(value, where)
    if "from" in message and not message.keys() & {"role", "content"}:
        message = _of_sharegpt(message, where)
    if "from" in message and "value" in message:
        raise Rejection("bad_message", f"{where}: has both role and from; keep one of the formats")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        seen = shown(role) if "role" in message else "missing"
        raise Rejection("bad_message", f"{where}.role: {seen}; a role is a string such as user")
    if "tool_calls" in message:
        _check_calls(message["tool_calls"], f"{where}.tool_calls")
    content = message.get("content")
    if isinstance(content, list):
        parts = [_to_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
        message["content"] = parts
    elif content is not None:
        to_text(content, f"{where}.content", "bad_message")
    elif not any(message.get(key) for key in _INSTEAD_OF_CONTENT):
        raise Rejection(
            "bad_message", f"{where}.content: missing; a message needs content or tool calls"
        )
    return message


def _json_object(value: dict[Any, Any], where: str) -> dict[str, Any]:
    """Return a message without nulls, like transformers, and without values that JSON lacks."""
    message = {}
    if DUPLICATE in value:
        check_json(value, where, "bad_message")
    for key, each in value.items():
        try:
            check_json(each, f"{where}.{key}", "not_json")
        except Rejection as rejection:
            if rejection.reason != "not_json":
                raise
            if key in _CHECKED_KEYS:
                raise Rejection("bad_message", rejection.detail) from None
        else:
            message[to_text(key, f"a key of {where}", "bad_message")] = each
    return {key: each for key, each in message.items() if each is not None}


def _of_sharegpt(message: dict[str, Any], where: str) -> dict[str, Any]:
    name, value = message.pop("from"), message.pop("value", None)
    role = _SHAREGPT_ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        allowed = ", ".join(_SHAREGPT_ROLES)
        raise Rejection("bad_message", f"{where}.from: {shown(name)}; must be one of {allowed}")
    if name != "function_call":
        return {"role": role, **({} if value is None else {"content": value}), **message}
    calls = from_json_text(value, f"{where}.value", "bad_message")
    calls = calls if isinstance(calls, list) else [calls]
    functions = [{"type": "function", "function": call} for call in calls]
    return {"role": role, "content": "", "tool_calls": functions, **message}


def _check_calls(calls: object, where: str) -> None:
    if not isinstance(calls, list):
        raise Rejection("bad_message", f"{where}: {shown(calls)} is not a list of calls")
    for index, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Rejection(
                "bad_message",
                f'{where}[{index}]: {shown(call)} is not {{"function": {{"name": ..., '
                '"arguments": ...}}',
            )


def _to_part(part: object, where: str) -> dict[str, Any]:
    kept = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
    if kept.keys() != {"type", "text"} or kept["type"] != "text":
        raise Rejection(
            "bad_message",
            f'{where}: {shown(part)}; only {{"type": "text", "text": ...}} is allowed, not images '
            "or audio",
        )
    to_text(kept["text"], f"{where}.text", "bad_message")
    return kept


def from_json_text(text: object, where: str, reason: str) -> Any:
    """Return the value of a JSON text, or raise `Rejection`; `where` names it in errors."""
    try:
        value = parse_line(to_text(text, where, reason).encode(), 1)
    except Rejection as rejection:
        raise Rejection(reason, f"{where}: not JSON, {rejection.detail}") from None
    check_json(value, where, reason)
    return value


def check_json(value: object, where: str, reason: str, depth: int = 0) -> None:
    """Reject a value that JSON cannot hold, such as a table's date, or that repeats a key.

    Args:
        value: value to check.
        where: name of the value in errors.
        reason: reason of a rejection for a value or a text that is not allowed.
        depth: number of arrays and objects around the value.

    Raises:
        Rejection: the value is not JSON of Unicode text, repeats a key, or is nested too deeply.
    """
    if depth > _MAX_DEPTH:
        raise Rejection(
            "too_deep", f"{where[:60]}: nested in more than {_MAX_DEPTH} arrays or objects"
        )
    if isinstance(value, dict):
        if DUPLICATE in value:
            detail = f"{where}: an object has the key {shown(value[DUPLICATE])} twice; keep one"
            raise Rejection("duplicate_key", detail)
        for key, each in value.items():
            to_text(key, f"a key of {where}", reason)
            check_json(each, f"{where}.{key}", reason, depth + 1)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            check_json(each, f"{where}[{index}]", reason, depth + 1)
    elif isinstance(value, str):
        to_text(value, where, reason)
    elif value is not None and not isinstance(value, int | float):
        raise Rejection(reason, f"{where}: {shown(value)} is not a JSON value")


def to_text(value: object, where: str, reason: str) -> str:
    """Return a string of valid Unicode, or raise `Rejection`; `where` names its field."""
    if not isinstance(value, str):
        raise Rejection(reason, f"{where}: {shown(value)} is not a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        seen = value[error.start]
        raise Rejection(
            "bad_encoding",
            f"{where}: character {error.start} is {seen!r}, which is half of a surrogate pair or a "
            "byte that is not UTF-8",
        ) from None
    return value
