"""Layouts of JSON files: records on lines, in a list, or in one object.

Each parser takes the chunks of a file, without a byte order mark, and the source of the file. It
yields the items that `corpus.parse.parse_tasks` documents, and raises `Rejection` if the rest of
the file cannot be read.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import PurePosixPath

from corpus.json_records import DUPLICATE, MAX_RECORD_BYTES, members, parse_line, split_lines
from corpus.repeats import OwnIds, Seen
from corpus.task import Item, Notice, Pair, Rejection, Task
from corpus.validate import (
    CONTENT_KEYS,
    ID_KEYS,
    has_content,
    id_key_of,
    keys_to_read,
    kind_of,
    not_a_task,
    to_id,
    to_item,
    to_pair,
    to_pairs,
)

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")

WRAPPERS = ("data", "task")
"""Keys that may hold the content of a record without any of `CONTENT_KEYS`."""

_COMPRESSED = (".gz", ".bz2", ".zst", ".xz")
_PAIRS_PER_TASK = 6
_REPEATED = ""
"""Marker in the set of names for an earlier repeated name. No id is empty."""
_MEMBERS_TO_TELL_A_LAYOUT = 1000


def parse_lines(
    chunks: Iterator[bytes], source: str, text_field: str | None, names: Seen, first: int = 1
) -> Iterator[Item]:
    """Parse JSON Lines: one record per line. The number of the first line is `first`."""
    for number, line in enumerate(split_lines(chunks), start=first):
        if not line.strip() and len(line) <= MAX_RECORD_BYTES:
            continue
        line_id = f"line-{number:06d}"
        try:
            record = parse_line(line, number)
        except Rejection as rejection:
            yield rejection.of(source, line_id)
        else:
            yield from record_items(record, source, line_id, names, text_field)


def add_line_ids(chunks: Iterator[bytes], own: OwnIds) -> None:
    """Add the ids of the records in lines of a JSON Lines file, without checking the records."""
    for line in split_lines(chunks):
        # A record with one of `ID_KEYS` has one of these, or an escaped letter.
        if b'id"' in line or b'name"' in line or b"\\u00" in line:
            with suppress(Rejection):
                own.add(parse_line(line, 0))


def parse_list(chunks: Iterator[bytes], source: str, text_field: str | None) -> Iterator[Item]:
    """Parse a list of records or of re-arc's pairs."""
    return _group(_list_items(chunks, source, text_field), source, _stem(source))


def _list_items(
    chunks: Iterator[bytes], source: str, text_field: str | None
) -> Iterator[Pair | Item]:
    index, names = -1, Seen()
    try:
        for index, (_, record) in enumerate(members(chunks)):
            item_id = f"item-{index:06d}"
            if kind_of(record, text_field) != "pair":
                yield from record_items(record, source, item_id, names, text_field)
                continue
            try:
                yield to_pair(record, item_id)
            except Rejection as rejection:
                yield rejection.of(source, item_id)
        if index < 0:
            raise Rejection("not_a_task", "the file is an empty list")
    except Rejection as rejection:
        yield rejection.of(source)


def parse_object(chunks: Iterator[bytes], source: str, text_field: str | None) -> Iterator[Item]:
    """Parse one record, Kaggle's `{id: record}`, or collections of tasks by name of the split.

    The first member that identifies the layout decides.
    """
    records = members(chunks)
    held: list[tuple[str | None, object]] = []
    has_splits = False
    for key, value in itertools.islice(records, _MEMBERS_TO_TELL_A_LAYOUT):
        held.append((key, value))
        if has_splits := not text_field and _is_collection(value):
            break
        if has_content({key: value}, text_field) and (text_field or not isinstance(value, dict)):
            yield from _parse_record(itertools.chain(held, records), source, text_field)
            return
        if isinstance(value, dict) and (
            has_content(value, text_field)
            if text_field
            else any(isinstance(value.get(name), list | str) for name in CONTENT_KEYS)
        ):
            break
    else:
        if held and all(_is_list_of_grids(value) for _, value in held):
            raise Rejection(
                "solutions_file",
                "a Kaggle solutions file has only answers; give the challenges file of the same "
                "name instead",
            )
        if len(held) < _MEMBERS_TO_TELL_A_LAYOUT:
            raise not_a_task(dict(held))
    names = Seen()
    for index, (key, value) in enumerate(itertools.chain(held, records)):
        if has_splits and _is_collection(value):
            yield from _parse_collection(str(key), value, source, names)
        else:
            yield from record_items(value, source, f"item-{index:06d}", names, text_field, key)


def _is_collection(value: object) -> bool:
    """Return True if a member of an object is `{id: task}` or `[task, ...]`."""
    if isinstance(value, dict):
        return not _is_task(value) and any(map(_is_task, value.values()))
    return isinstance(value, list) and bool(value) and _is_task(value[0])


def _is_task(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("train"), list)


def _parse_collection(split: str, value: object, source: str, names: Seen) -> Iterator[Item]:
    """Yield the tasks of one split. If an earlier split has the same id, it becomes `split/id`."""
    if isinstance(value, list):
        for index, record in enumerate(value):
            yield from record_items(record, source, f"{split}-{index:06d}", names, None)
    elif isinstance(value, dict):
        for key, record in value.items():
            task_id = f"{split}/{key}" if key in names else key
            names.add(task_id)
            yield from record_items(record, source, task_id, names, None, task_id)


def _is_list_of_grids(value: object) -> bool:
    for _ in range(3):
        if not isinstance(value, list) or not value:
            return False
        value = value[0]
    return not isinstance(value, list)


def _parse_record(
    records: Iterable[tuple[str | None, object]], source: str, text_field: str | None
) -> Iterator[Item]:
    """Yield the single record of a file; its id is the file's stem, or a document's own id."""
    record: dict[str | None, object] = {}
    kept = keys_to_read(text_field)
    for key, value in records:
        if key in record:
            record[DUPLICATE] = key
        if key in kept and value is not None:
            record[key] = value
    has_id = kind_of(record, text_field) != "task" and any(key in record for key in ID_KEYS)
    stem = _stem(source)
    yield from record_items(record, source, stem, Seen(), text_field, None if has_id else stem)


def record_items(
    record: object,
    source: str,
    default_id: str,
    names: Seen,
    text_field: str | None,
    key: str | None = None,
) -> Iterator[Item]:
    """Yield a record's task or document, or the tasks made of its pairs. Nulls count as absent.

    Args:
        record: JSON value of the record.
        source: name of the file.
        default_id: id of a record without a valid id.
        names: values of `name` in earlier records of the file. The name of this record is added.
        text_field: only content to read, as in `corpus.documents`; None to read any known content.
        key: id to use instead of the record's own id.
    """
    record_id = default_id
    try:
        if isinstance(record, dict):
            record = {k: v for k, v in record.items() if v is not None}
            id_key = id_key_of(record)
            if id_key == "name" and key is None:
                record_id = _name_or(default_id, record["name"], names)
                if record_id == default_id and _REPEATED not in names:
                    names.add(_REPEATED)
                    yield _repeated_name(source, record_id, record["name"])
            elif id_key and key is None:
                record_id = to_id(record[id_key])
        if key is not None:
            record_id = to_id(key)
        record = record if text_field else _unwrapped(record)
        if isinstance(record, dict) and kind_of(record, text_field) == "examples":
            pairs = to_pairs(record, "examples", "no_train_pairs")
            yield from _group(pairs, source, record_id)
        else:
            yield to_item(record, source, record_id, text_field)
    except Rejection as rejection:
        yield rejection.of(source, record_id)


def _name_or(default_id: str, name: object, names: Seen) -> str:
    """Return a record's name, or the default id if the name repeats or is not a valid id."""
    try:
        record_id = to_id(name)
    except Rejection:
        return default_id
    if record_id in names:
        return default_id
    names.add(record_id)
    return record_id


def _repeated_name(source: str, record_id: str, name: object) -> Notice:
    return Notice(
        source,
        record_id,
        "repeated_name",
        f"{source}: name {name!r:.60} repeats or is not an id, so the id of the record is "
        f"{record_id}. The ids of later records with such a name are also positions. Give "
        "each record its own id to avoid this",
    )


def _unwrapped(record: object) -> object:
    """Return a record with its content taken out of one of `WRAPPERS` and parsed from JSON text."""
    if not isinstance(record, dict):
        return record
    if not kind_of(record):
        for key in WRAPPERS:
            inner = _decoded(record, key)
            if isinstance(inner, dict) and kind_of(inner):
                repeated = {k: v for k, v in record.items() if k is DUPLICATE}
                content = {k: v for k, v in inner.items() if v is not None}
                return _unwrapped(content | repeated)
    texts = {k: _decoded(record, k) for k in ("train", "test", "examples") if k in record}
    return {**record, **texts}


def _decoded(record: dict[object, object], key: str) -> object:
    """Return the value of a key. A string that holds a JSON array or object is parsed."""
    value = record.get(key)
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return parse_line(value.encode("utf-8", "surrogatepass"), 1)
    except Rejection as rejection:
        raise Rejection(rejection.reason, f"{key}: {rejection.detail}") from None


def _group(items: Iterable[Pair | Item], source: str, name: str) -> Iterator[Item]:
    """Make tasks of consecutive pairs; pass on all other items."""
    pairs: list[Pair] = []
    names = (f"{name}-{index:06d}" for index in itertools.count())
    for item in items:
        if not isinstance(item, Pair):
            yield item
            continue
        pairs.append(item)
        if len(pairs) == _PAIRS_PER_TASK + 2:  # leaves at least two pairs for the last task
            yield _task(next(names), source, pairs[:_PAIRS_PER_TASK])
            del pairs[:_PAIRS_PER_TASK]
    if len(pairs) == 1:
        detail = "only one pair; a task needs at least two"
        yield Rejection("no_train_pairs", detail).of(source, next(names))
    elif pairs:
        yield _task(next(names), source, pairs)


def _task(task_id: str, source: str, pairs: list[Pair]) -> Task:
    return Task(task_id, source, tuple(pairs[:-1]), (pairs[-1],))


def decompressed_name(source: str) -> str:
    """Return a path without the suffix of a compressed file, whatever its case."""
    root, suffix = os.path.splitext(source)
    return root if suffix.lower() in _COMPRESSED else source


def _stem(source: str) -> str:
    """Return the stem of a path, such as `007bbfb7` for `training/007bbfb7.json.gz`."""
    return PurePosixPath(decompressed_name(source)).stem
