"""The layouts of JSON files: records on lines, in a list, or in one object.

Each function takes the chunks of a file, without a byte order mark, and its source, and yields what
`corpus.parse.parse_tasks` documents. It raises `Rejection` where the file cannot be read on.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from corpus.json_records import DUPLICATE, members, parse_line, split_lines
from corpus.task import Document, Item, Pair, Rejection, Task
from corpus.validate import (
    CONTENT_KEYS,
    ID_KEYS,
    has_content,
    keys_to_read,
    kind_of,
    not_a_task,
    to_id,
    to_item,
    to_pair,
    to_pairs,
)

_PAIRS_PER_TASK = 6
_MEMBERS_TO_TELL_A_LAYOUT = 1000


def parse_lines(chunks: Iterator[bytes], source: str, text_field: str | None) -> Iterator[Item]:
    """JSON Lines: a record on each line."""
    for number, line in enumerate(split_lines(chunks), start=1):
        if not line.strip():
            continue
        line_id = f"line-{number:06d}"
        try:
            record = parse_line(line, number)
        except Rejection as rejection:
            yield rejection.of(source, line_id)
        else:
            yield from record_items(record, source, line_id, text_field)


def parse_list(chunks: Iterator[bytes], source: str, text_field: str | None) -> Iterator[Item]:
    """A list of records or of re-arc's pairs."""
    return _group(_list_items(chunks, source, text_field), source, _stem(source))


def _list_items(
    chunks: Iterator[bytes], source: str, text_field: str | None
) -> Iterator[Pair | Item]:
    index = -1
    try:
        for index, (_, record) in enumerate(members(chunks)):
            item_id = f"item-{index:06d}"
            if kind_of(record, text_field) != "pair":
                yield from record_items(record, source, item_id, text_field)
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
    """One record, or Kaggle's `{id: record}`: the first telling member decides."""
    records = members(chunks)
    held: list[tuple[str | None, object]] = []
    for key, value in itertools.islice(records, _MEMBERS_TO_TELL_A_LAYOUT):
        held.append((key, value))
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
                "Kaggle's solutions hold only answers; give the challenges file of the same name",
            )
        if len(held) < _MEMBERS_TO_TELL_A_LAYOUT:
            raise not_a_task(dict(held))
    for index, (key, value) in enumerate(itertools.chain(held, records)):
        yield from record_items(value, source, f"item-{index:06d}", text_field, key)


def _is_list_of_grids(value: object) -> bool:
    for _ in range(3):
        if not isinstance(value, list) or not value:
            return False
        value = value[0]
    return not isinstance(value, list)


def _parse_record(
    records: Iterable[tuple[str | None, object]], source: str, text_field: str | None
) -> Iterator[Item]:
    """The one record of a file. A document may have an id of its own, else the file names it."""
    record: dict[str | None, object] = {}
    kept = keys_to_read(text_field)
    for key, value in records:
        if key in record:
            record[DUPLICATE] = key
        if key in kept:
            record[key] = value
    has_id = kind_of(record, text_field) != "task" and any(key in record for key in ID_KEYS)
    stem = _stem(source)
    yield from record_items(record, source, stem, text_field, None if has_id else stem)


def record_items(
    record: object,
    source: str,
    default_id: str,
    text_field: str | None,
    key: str | None = None,
) -> Iterator[Item]:
    """Yield a record's task or document, or the tasks made of its pairs.

    Args:
        default_id: the id of a record that has none, or a bad one.
        text_field: the only content to read, as in `corpus.documents`; None for what is found.
        key: the id that counts instead of the record's own.
    """
    record_id = default_id
    try:
        if key is not None:
            record_id = to_id(key)
        elif isinstance(record, dict):
            record_id = next((to_id(record[k]) for k in ID_KEYS if k in record), default_id)
        if isinstance(record, dict) and kind_of(record, text_field) == "examples":
            pairs = to_pairs(record, "examples", "no_train_pairs")
            yield from _group(pairs, source, record_id)
        else:
            yield to_item(record, source, record_id, text_field)
    except Rejection as rejection:
        yield rejection.of(source, record_id)


def _group(items: Iterable[Pair | Item], source: str, name: str) -> Iterator[Item]:
    """Make tasks of consecutive pairs; pass on all other items."""
    pairs: list[Pair] = []
    names = (f"{name}-{index:06d}" for index in itertools.count())
    for item in items:
        if not isinstance(item, Pair):
            yield item
            continue
        pairs.append(item)
        if len(pairs) == _PAIRS_PER_TASK + 2:  # enough for a last task of two
            yield _task(next(names), source, pairs[:_PAIRS_PER_TASK])
            del pairs[:_PAIRS_PER_TASK]
    if len(pairs) == 1:
        yield Rejection("no_train_pairs", "there is only one pair").of(source, next(names))
    elif pairs:
        yield _task(next(names), source, pairs)


def _task(task_id: str, source: str, pairs: list[Pair]) -> Task:
    return Task(task_id, source, tuple(pairs[:-1]), (pairs[-1],))


def decompressed_name(source: str) -> str:
    for suffix in (".gz", ".bz2", ".zst", ".xz"):
        source = source.removesuffix(suffix)
    return source


def _stem(source: str) -> str:
    """Return `007bbfb7` for `training/007bbfb7.json.gz`."""
    return PurePosixPath(decompressed_name(source)).stem


def without_repeated_ids(items: Iterable[Item], source: str) -> Iterator[Item]:
    """Reject each item that has the id of an earlier item's sample; memory grows by the ids."""
    seen = set[str]()
    for item in items:
        if isinstance(item, Task):
            item_id = item.task_id
            ids = {f"{item_id}/{index}" for index in range(len(item.test))}
        elif isinstance(item, Document):
            item_id = item.document_id
            ids = {item_id}
        else:  # could have been of any kind
            item_id = ""
            ids = {item.task_id, f"{item.task_id}/0"} if item.task_id else set()
        if item_id and not seen.isdisjoint(ids):
            advice = "an earlier record of the file has this id; give each its own"
            yield Rejection("duplicate_id", advice).of(source, item_id)
        else:
            yield item
        seen |= ids
