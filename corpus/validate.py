"""From a JSON value to a `Task` or a `Document`, or the reason why not.

Keys that are not named here are ignored. A record with several kinds of content is read as the
first of: task (`train` or `test`), conversation (`messages`), `text`, pairs (`examples`).
"""

import reprlib
from collections.abc import Mapping, Sequence

from corpus.json_records import DUPLICATE
from corpus.task import MAX_GRID_SIDE, Document, Grid, Message, Pair, Rejection, Task

# A record has at least one of these keys, and the first of its ID_KEYS counts.
CONTENT_KEYS = ("train", "test", "messages", "text", "examples")
ID_KEYS = ("id", "task_id", "name")

ROLES = ("system", "user", "assistant", "tool")

MAX_ID_CHARS = 256

_DIGITS = frozenset(range(10))

_SHORT = reprlib.Repr()
_SHORT.maxstring = 60
_SHORT.maxlevel = 3
_shown = _SHORT.repr


def kind_of(value: object) -> str:
    """Return what a value is to be read as: `task`, another of `CONTENT_KEYS`, `pair` or ""."""
    if not isinstance(value, dict):
        return ""
    key = next((key for key in CONTENT_KEYS if key in value), "")
    if key in ("train", "test"):
        return "task"
    return key or ("pair" if "input" in value else "")


def not_a_task(value: object) -> Rejection:
    """Return the rejection of a value that is no record."""
    seen = f"an object with the keys {_shown(list(value))}" if isinstance(value, dict) else None
    return Rejection(
        "not_a_task",
        f'{seen or _shown(value)}; a task is {{"train": [pair, ...], "test": [pair, ...]}}, a '
        'document {"id": ..., "text": ...} or {"id": ..., "messages": [...]}, pairs '
        '{"examples": [[input, output], ...]}',
    )


def to_id(value: object) -> str:
    """Return a record's id, a whole number or a short printable text, as text."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and 0 < len(text) <= MAX_ID_CHARS and text.isprintable():
        return text
    raise Rejection(
        "bad_id",
        f"id: {_shown(value)} is not an id; use a whole number or 1 to {MAX_ID_CHARS} printable "
        "characters",
    )


def to_item(record: object, source: str, record_id: str) -> Task | Document:
    """Read a task or a document, or raise `Rejection`."""
    kind = kind_of(record)
    if not isinstance(record, dict) or kind not in ("task", "messages", "text"):
        raise not_a_task(record)
    _check_keys(record)
    if kind == "task":
        train = to_pairs(record, "train", "no_train_pairs")
        test = to_pairs(record, "test", "no_test_inputs", with_output=False)
        return Task(record_id, source, train, test)
    if kind == "messages":
        return Document(record_id, source, None, _to_messages(record["messages"]))
    text = _to_text(record["text"], "text", "bad_text")
    if not text.strip():
        raise Rejection("empty_text", f"text: {_shown(text)} holds no text")
    return Document(record_id, source, text)


def to_pairs(
    record: Mapping[object, object], key: str, reason: str, *, with_output: bool = True
) -> tuple[Pair, ...]:
    """Read a record's list of pairs; `reason` is that of a list which is missing or empty."""
    _check_keys(record)
    value = record.get(key)
    if not isinstance(value, list) or not value:
        seen = _shown(value) if key in record else "missing"
        raise Rejection(reason, f"{key}: {seen}; a task needs a list of at least one pair")
    return tuple(
        to_pair(pair, f"{key}[{index}]", with_output=with_output)
        for index, pair in enumerate(value)
    )


def to_pair(pair: object, where: str, *, with_output: bool = True) -> Pair:
    """Read `{"input": grid, "output": grid}` or `[input, output]`; `where` names it in messages.

    Without `with_output` the output may be absent or null, as in Kaggle's challenges.
    """
    if isinstance(pair, list) and len(pair) == 2:
        pair = dict(zip(("input", "output"), pair, strict=True))
    if not isinstance(pair, dict) or "input" not in pair:
        raise Rejection(
            "bad_pair", f'{where}: {_shown(pair)} is not a pair {{"input": grid, "output": grid}}'
        )
    _check_keys(pair)
    output = pair.get("output")
    if output is None and with_output:
        raise Rejection("bad_pair", f"{where}.output: missing; only a test may lack its output")
    return Pair(
        to_grid(pair["input"], f"{where}.input"),
        None if output is None else to_grid(output, f"{where}.output"),
    )


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
                f"{where} row {index}: {len(row)} cells, expected {width} as in row 0 (rows count "
                "from 0)",
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


def _check_keys(value: Mapping[object, object]) -> None:
    if DUPLICATE in value:
        raise Rejection(
            "duplicate_key", f"an object has the key {_shown(value[DUPLICATE])} twice; keep one"
        )


def _to_messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise Rejection("bad_message", f"messages: {_shown(value)} is not a list of messages")
    messages = []
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise Rejection(
                "bad_message", f'{where}: {_shown(message)} is not {{"role": ..., "content": ...}}'
            )
        _check_keys(message)
        role = message.get("role")
        if role not in ROLES:
            raise Rejection(
                "bad_message", f"{where}.role: {_shown(role)}; one of {', '.join(ROLES)}"
            )
        content = _to_text(message.get("content"), f"{where}.content", "bad_message")
        messages.append(Message(str(role), content))
    if not any(message.content.strip() for message in messages):
        raise Rejection("empty_text", f"messages: {_shown(value)} hold no text")
    return tuple(messages)


def _to_text(value: object, where: str, reason: str) -> str:
    if not isinstance(value, str):
        raise Rejection(reason, f"{where}: {_shown(value)} is not a string of text")
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
