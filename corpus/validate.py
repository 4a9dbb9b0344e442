"""From a JSON value to a `Task` or a `Document`, or the reason why not.

Keys that are not named here are ignored, wherever they stand. A record with several kinds of
content is read as the first of: task (`train` or `test`), conversation (`messages`), `text`, pairs
without a test among them (`examples`).
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from corpus.json_stream import Rejection
from corpus.task import MAX_GRID_SIDE, Document, Grid, Message, Pair, Task

CONTENT_KEYS = ("train", "test", "messages", "text", "examples")
"""A record has at least one of these keys."""

ID_KEYS = ("id", "task_id", "name")
"""Where a record of a list or of a JSON Lines file has its id; the first that is there."""

ROLES = ("system", "user", "assistant", "tool")

MAX_ID_CHARS = 256

_DIGITS = frozenset(range(10))


def is_record(value: object) -> bool:
    """Whether a JSON value has the outline of a task, a document or pairs."""
    return isinstance(value, dict) and (
        any(isinstance(value.get(key), list) for key in ("train", "test", "messages", "examples"))
        or isinstance(value.get("text"), str)
    )


def is_task(record: Mapping[str, object]) -> bool:
    """Whether a record is to be read as a task."""
    return "train" in record or "test" in record


def is_pairs(record: object) -> TypeGuard[Mapping[str, object]]:
    """Whether a record is to be read as pairs."""
    return isinstance(record, dict) and [k for k in CONTENT_KEYS if k in record] == ["examples"]


def not_a_task(value: object) -> Rejection:
    """The reason for a value that is neither."""
    seen = f"an object with the keys {_shown(list(value))}" if isinstance(value, dict) else None
    return Rejection("not_a_task", f"{seen or _shown(value)}; {_EXPECTED}")


def to_id(value: object) -> str:
    """A record's id as text.

    Raises:
        Rejection: `bad_id`, unless it is a whole number or 1 to 256 printable characters.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and 0 < len(text) <= MAX_ID_CHARS and text.isprintable():
        return text
    raise Rejection(
        "bad_id",
        f"id: {_shown(value)} is not an id; an id is a whole number or 1 to {MAX_ID_CHARS} "
        "printable characters",
    )


def to_item(record: object, source: str, record_id: str) -> Task | Document:
    """Read a task or a document.

    Raises:
        Rejection: any reason of `corpus.task.REASONS` that concerns one record.
    """
    if not isinstance(record, dict):
        raise not_a_task(record)
    if is_task(record):
        return to_task(record, source, record_id)
    if "messages" in record:
        return Document(record_id, source, None, _to_messages(record["messages"]))
    if "text" in record:
        return Document(record_id, source, _to_text(record["text"], "text"))
    raise not_a_task(record)


def to_task(record: Mapping[str, object], source: str, task_id: str) -> Task:
    """Read a task from `{"train": [pair, ...], "test": [pair, ...]}`."""
    train = _to_list(record, "train", "no_train_pairs")
    test = _to_list(record, "test", "no_test_inputs")
    return Task(
        task_id,
        source,
        tuple(to_pair(pair, f"train[{i}]", with_output=True) for i, pair in enumerate(train)),
        tuple(to_pair(pair, f"test[{i}]", with_output=False) for i, pair in enumerate(test)),
    )


def to_pairs(record: Mapping[str, object]) -> list[Pair]:
    """Read `{"examples": [pair, ...]}`, where a pair may also be `[input, output]`."""
    pairs = []
    for index, pair in enumerate(_to_list(record, "examples", "no_train_pairs")):
        if isinstance(pair, list) and len(pair) == 2:
            pair = {"input": pair[0], "output": pair[1]}
        pairs.append(to_pair(pair, f"examples[{index}]", with_output=True))
    return pairs


def to_pair(pair: object, where: str, *, with_output: bool) -> Pair:
    """Read `{"input": grid, "output": grid}`; `where` is its path, for the message.

    Without `with_output` the output may be absent or null, as in Kaggle's challenges.
    """
    if not isinstance(pair, dict) or "input" not in pair:
        raise Rejection(
            "bad_pair", f'{where}: {_shown(pair)} is not a pair {{"input": grid, "output": grid}}'
        )
    if pair.get("output") is not None:
        return Pair(
            to_grid(pair["input"], f"{where}.input"), to_grid(pair["output"], f"{where}.output")
        )
    if with_output:
        raise Rejection("bad_pair", f"{where}.output: missing; only a test may lack its output")
    return Pair(to_grid(pair["input"], f"{where}.input"), None)


def to_grid(grid: object, where: str) -> Grid:
    """Read a list of rows of cells; whole floats such as 3.0 become integers."""
    if not isinstance(grid, list) or not all(isinstance(row, list) for row in grid):
        raise Rejection("bad_grid", f"{where}: {_shown(grid)} is not a list of rows of cells")
    if not grid or not grid[0]:
        raise Rejection("empty_grid", f"{where}: {_shown(grid)} has no cells; at least 1 x 1")
    width = len(grid[0])
    if max(len(grid), width) > MAX_GRID_SIDE:
        raise Rejection(
            "grid_too_large",
            f"{where}: {len(grid)} rows and {width} columns; at most {MAX_GRID_SIDE} of each",
        )
    for index, row in enumerate(grid):
        if len(row) != width:
            raise Rejection(
                "ragged_grid",
                f"{where} row {index}: {len(row)} cells, where row 0 has {width} (rows count from "
                "0); every row of a grid has the same length",
            )
    return tuple(_to_row(row, f"{where} row {index}") for index, row in enumerate(grid))


def _to_row(row: Sequence[object], where: str) -> tuple[int, ...]:
    if set(map(type, row)) == {int} and _DIGITS.issuperset(row):
        return tuple(row)  # type: ignore[arg-type]
    cells = []
    for column, cell in enumerate(row):
        if isinstance(cell, bool) or not isinstance(cell, int | float) or cell not in _DIGITS:
            raise Rejection(
                "bad_cell",
                f"{where}, column {column}: {_shown(cell)} is not a cell; cells are whole numbers "
                "from 0 to 9 (rows and columns count from 0)",
            )
        cells.append(int(cell))
    return tuple(cells)


def _to_list(record: Mapping[str, object], key: str, reason: str) -> list[object]:
    value = record.get(key)
    if not isinstance(value, list) or not value:
        seen = _shown(value) if key in record else "missing"
        raise Rejection(reason, f"{key}: {seen}; a task needs a list of at least one pair")
    return value


def _to_messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise Rejection("bad_message", f"messages: {_shown(value)} is not a list of messages")
    messages = []
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise Rejection(
                "bad_message",
                f'{where}: {_shown(message)} is not {{"role": ..., "content": ...}}',
            )
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise Rejection(
                "bad_message", f"{where}.role: {_shown(role)}; one of {', '.join(ROLES)}"
            )
        if not isinstance(content, str):
            raise Rejection(
                "bad_message", f"{where}.content: {_shown(content)} is not a string of text"
            )
        _check_encodable(content, f"{where}.content")
        messages.append(Message(str(role), content))
    if not any(message.content.strip() for message in messages):
        raise Rejection("empty_text", f"messages: {_shown(value)} hold no text")
    return tuple(messages)


def _to_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise Rejection("bad_text", f"{where}: {_shown(value)} is not a string of text")
    if not value.strip():
        raise Rejection("empty_text", f"{where}: {_shown(value)} holds no text")
    _check_encodable(value, where)
    return value


def _check_encodable(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Rejection(
            "bad_encoding",
            f"{where}: character {error.start} is {text[error.start]!r}, half of a surrogate pair",
        ) from None


def _shown(value: object) -> str:
    """A value for a message, cut short."""
    return _SHOWN.repr(value)


_SHOWN = reprlib.Repr()
_SHOWN.maxstring = 60
_SHOWN.maxlevel = 3

_EXPECTED = (
    'a task is {"train": [pair, ...], "test": [pair, ...]}, a document {"id": ..., "text": ...} '
    'or {"id": ..., "messages": [...]}, pairs {"examples": [[input, output], ...]}'
)
