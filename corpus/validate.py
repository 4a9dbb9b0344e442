"""Convert a JSON value to a `Task` or a `Document`, or reject it with a reason.

A record with a list under `train` or `test` is a task. If a record has no document key of
`corpus.documents`, its `examples` are pairs. Keys that neither module names are metadata and are
not read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from corpus.documents import DOCUMENT_KEYS, OTHER_KEYS, field_of, to_document
from corpus.json_records import DUPLICATE
from corpus.messages import shown
from corpus.task import MAX_GRID_SIDE, Document, Grid, Pair, Rejection, Task

# A record has at least one of CONTENT_KEYS. Its id is the value of the first of ID_KEYS.
CONTENT_KEYS = ("train", "test", *DOCUMENT_KEYS, "examples")
ID_KEYS = ("id", "task_id", "name")

MAX_ID_CHARS = 256

_DIGITS = frozenset(range(10))


def keys_to_read(text_field: str | None) -> tuple[str, ...]:
    """Return all keys of a record that may be read."""
    content = (text_field, text_field.partition(".")[0]) if text_field else CONTENT_KEYS
    return (*ID_KEYS, *content, *OTHER_KEYS)


def has_content(record: Mapping[Any, object], text_field: str | None) -> bool:
    """Return True if the record has `text_field`, or one of `CONTENT_KEYS` if that is None."""
    if text_field:
        return field_of(record, text_field) is not None
    return any(record.get(key) is not None for key in CONTENT_KEYS)


def kind_of(value: object, text_field: str | None = None) -> str:
    """Return the kind of a value: `task`, `document`, `examples`, `pair`, or "" if unknown."""
    if not isinstance(value, dict):
        return ""
    if text_field:
        return "document"
    present = [key for key in CONTENT_KEYS if value.get(key) is not None]
    documents = [key for key in present if key in DOCUMENT_KEYS]
    is_task = any(isinstance(value[key], list) for key in present if key in ("train", "test"))
    if present[:1] in (["train"], ["test"]) and (is_task or not documents):
        return "task"
    if documents:
        return "document"
    return "examples" if present else "pair" if "input" in value else ""


def not_a_task(value: object) -> Rejection:
    """Return the rejection of a value that is not a record."""
    seen = shown(value)
    if isinstance(value, dict):
        seen = f"an object with the keys {shown(list(value))}"
        texts = [key for key, held in value.items() if isinstance(held, str) and key not in ID_KEYS]
        if texts:
            seen += f"; if the text is in {texts[0]}, pass --text_field {texts[0]}"
    return Rejection(
        "not_a_task",
        f'{seen}; a task is {{"train": [pair, ...], "test": [pair, ...]}}, a document is '
        '{"id": ..., "text": ...} or {"id": ..., "messages": [...]}, and pairs are '
        '{"examples": [[input, output], ...]}. --text_field names another key with a text',
    )


def id_key_of(record: Mapping[Any, object]) -> str | None:
    """Return the key that holds the id of a record; None if it has no id."""
    return next((key for key in ID_KEYS if record.get(key) is not None), None)


def to_id(value: object) -> str:
    """Return a record's id, a whole number or a short printable string, as a string.

    Raises:
        Rejection: the value is not a valid id.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and 0 < len(text) <= MAX_ID_CHARS and text.isprintable():
        return text
    raise Rejection(
        "bad_id",
        f"id: {shown(value)} is not an id; use a whole number or 1 to {MAX_ID_CHARS} printable "
        "characters",
    )


def to_item(
    record: object, source: str, record_id: str, text_field: str | None = None
) -> Task | Document:
    """Read a task or a document, or raise `Rejection`. A null counts as absent."""
    kind = kind_of(record, text_field)
    if not isinstance(record, dict) or kind not in ("task", "document"):
        raise not_a_task(record)
    _check_keys(record)
    if kind == "document":
        present = {key: value for key, value in record.items() if value is not None}
        return to_document(present, source, record_id, text_field)
    train = to_pairs(record, "train", "no_train_pairs")
    test = to_pairs(record, "test", "no_test_inputs", with_output=False)
    return Task(record_id, source, train, test)


def to_pairs(
    record: Mapping[object, object], key: str, reason: str, *, with_output: bool = True
) -> tuple[Pair, ...]:
    """Read a record's list of pairs, which must not be missing or empty.

    Args:
        record: record that has the list.
        key: key of the list.
        reason: reason of the rejection if the list is missing or empty.
        with_output: True if every pair must have an output.

    Raises:
        Rejection: the list is missing or empty, or a pair is invalid.
    """
    _check_keys(record)
    value = record.get(key)
    if not isinstance(value, list) or not value:
        seen = shown(value) if key in record else "missing"
        raise Rejection(reason, f"{key}: {seen}; a task needs a list of at least one pair")
    return tuple(
        to_pair(pair, f"{key}[{index}]", with_output=with_output)
        for index, pair in enumerate(value)
    )


def to_pair(pair: object, where: str, *, with_output: bool = True) -> Pair:
    """Read `{"input": grid, "output": grid}` or `[input, output]`; `where` names it in errors.

    If `with_output` is False, the output may be absent or null, as in Kaggle's challenges.
    """
    if isinstance(pair, list) and len(pair) == 2:
        pair = dict(zip(("input", "output"), pair, strict=True))
    if not isinstance(pair, dict) or "input" not in pair:
        raise Rejection(
            "bad_pair", f'{where}: {shown(pair)} is not a pair {{"input": grid, "output": grid}}'
        )
    _check_keys(pair)
    output = pair.get("output")
    if output is None and with_output:
        raise Rejection("bad_pair", f"{where}.output: missing; only a test pair may lack it")
    return Pair(
        to_grid(pair["input"], f"{where}.input"),
        None if output is None else to_grid(output, f"{where}.output"),
    )


def to_grid(grid: object, where: str) -> Grid:
    """Read a list of rows of cells. Whole floats such as 3.0 become integers."""
    if not isinstance(grid, list) or not all(isinstance(row, list) for row in grid):
        raise Rejection("bad_grid", f"{where}: {shown(grid)} is not a list of rows of cells")
    if not grid or not grid[0]:
        raise Rejection(
            "empty_grid", f"{where}: {shown(grid)} has no cells; a grid is at least 1 x 1"
        )
    width = len(grid[0])
    if max(len(grid), width) > MAX_GRID_SIDE:
        raise Rejection(
            "grid_too_large",
            f"{where}: {len(grid)} rows and {width} columns; at most {MAX_GRID_SIDE} of each are "
            "allowed",
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
                f"{where}, column {column}: {shown(cell)} is not a cell; cells are whole numbers "
                "from 0 to 9 (rows and columns count from 0)",
            )
        cells.append(int(cell))
    return tuple(cells)


def _check_keys(value: Mapping[object, object]) -> None:
    if DUPLICATE in value:
        raise Rejection(
            "duplicate_key", f"an object has the key {shown(value[DUPLICATE])} twice; keep one"
        )
