"""The ways in which files lay out their records: on lines, in a list, or in one object.

Each function yields what `corpus.parse.parse_tasks` documents, and raises `Rejection` where the
file as a whole cannot be read on.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from corpus.json_stream import (
    MAX_RECORD_BYTES,
    Decoded,
    RawRecord,
    Rejection,
    decode,
    split_lines,
    split_members,
)
from corpus.task import Document, Pair, RejectedTask, Task
from corpus.validate import (
    CONTENT_KEYS,
    ID_KEYS,
    is_pairs,
    is_record,
    is_task,
    not_a_task,
    to_id,
    to_item,
    to_pair,
    to_pairs,
)

Item = Task | Document | RejectedTask

PAIRS_PER_TASK = 6
"""How many pairs make a task, the test included, where a file has only pairs."""

_MAX_HELD = 1000
_KEY = re.compile(rb'"(?:[^"\\]|\\.)*"')


def parse_lines(chunks: Iterable[bytes], source: str) -> Iterator[Item]:
    """JSON Lines: a task or a document on each line."""
    for line in split_lines(chunks):
        line_id = f"line-{line.line:06d}"
        try:
            yield from record_items(decode(line), source, line_id)
        except Rejection as rejection:
            yield rejected(source, line_id, rejection)


def parse_list(chunks: Iterable[bytes], source: str) -> Iterator[Item]:
    """A list of tasks and documents, or of re-arc's pairs."""
    pairs: list[Pair] = []
    groups = itertools.count()
    fault = None
    index = -1
    try:
        for index, member in enumerate(split_members(chunks)):
            item_id = f"item-{index:06d}"
            try:
                decoded = decode(member)
                if _is_lone_pair(decoded.value):
                    _check_keys(decoded)
                    pairs.append(to_pair(decoded.value, item_id, with_output=True))
                else:
                    yield from record_items(decoded, source, item_id)
            except Rejection as rejection:
                yield rejected(source, item_id, rejection)
            if len(pairs) == PAIRS_PER_TASK + 2:  # whatever follows, two are left for a last group
                yield _group(pairs[:PAIRS_PER_TASK], source, _stem(source), next(groups))
                del pairs[:PAIRS_PER_TASK]
    except Rejection as rejection:
        fault = rejection
    if pairs:
        yield _group(pairs, source, _stem(source), next(groups))
    if fault is not None:
        raise fault
    if index < 0:
        raise Rejection("not_a_task", "the file is an empty list")


def parse_object(chunks: Iterable[bytes], source: str) -> Iterator[Item]:
    """One task or document, or Kaggle's `{id: task}`: the first telling member decides."""
    members = split_members(chunks)
    held: list[RawRecord] = []
    held_bytes = 0
    kinds = set[str]()
    for member in members:
        held.append(member)
        held_bytes += len(member.text or b"")
        kinds.add(_kind_of_object(member))
        if not kinds.isdisjoint(("record", "combined")):
            break
        if held_bytes > MAX_RECORD_BYTES or len(held) > _MAX_HELD:
            kinds.add("undecided")
            break
    everything = itertools.chain(held, members)
    if "record" in kinds:
        yield from _parse_record(everything, source)
    elif kinds in ({"solutions"}, {"solutions", "undecided"}):
        raise Rejection(
            "solutions_file",
            "Kaggle's solutions hold only answers; give the challenges file of the same name",
        )
    elif kinds <= {"solutions", "other"}:
        raise not_a_task(dict.fromkeys(_key_of(member) for member in held))
    else:
        yield from _parse_combined(everything, source)


def decompressed_name(source: str) -> str:
    """The name of a file without the suffix by which it is decompressed while read."""
    for suffix in (".gz", ".bz2", ".zst", ".xz"):
        source = source.removesuffix(suffix)
    return source


def without_repeated_ids(items: Iterable[Item], source: str) -> Iterator[Item]:
    """Rejects each item whose id, or whose samples' ids, an earlier item of the file has.

    Memory grows by a digest of each id.
    """
    seen = set[bytes]()
    for item in items:
        keys = {_digest(key) for key in _keys(item)}
        if isinstance(item, RejectedTask) or seen.isdisjoint(keys):
            yield item
        else:
            item_id = item.task_id if isinstance(item, Task) else item.document_id
            advice = "an earlier record of the file has this id; give each its own"
            yield rejected(source, item_id, Rejection("duplicate_id", advice))
        seen |= keys


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest()


def _keys(item: Item) -> list[str]:
    """What must be unique in a file: how sample ids end. A rejected record could be of any kind."""
    if isinstance(item, Task):
        return [f"{item.task_id}/{index}" for index in range(len(item.test))]
    if isinstance(item, Document):
        return [item.document_id]
    return [item.task_id, f"{item.task_id}/0"] if item.task_id else []


def rejected(source: str, record_id: str, rejection: Rejection) -> RejectedTask:
    """A `RejectedTask` whose detail names the file and, if there is an id, the task."""
    where = f"{source}, task {record_id}" if record_id else source
    return RejectedTask(source, record_id, rejection.reason, f"{where}: {rejection.detail}")


def record_items(decoded: Decoded, source: str, record_id: str) -> Iterator[Item]:
    """A record that may have an id of its own; `record_id` stands in for none, or a bad one."""
    try:
        record_id = _own_id(decoded.value, record_id)
        _check_keys(decoded)
        yield from to_items(decoded.value, source, record_id)
    except Rejection as rejection:
        yield rejected(source, record_id, rejection)


def to_items(record: object, source: str, record_id: str) -> Iterator[Item]:
    """A task, a document, or the tasks that a record's pairs make.

    Raises:
        Rejection: any reason of `corpus.task.REASONS` that concerns one record.
    """
    if not is_pairs(record):
        yield to_item(record, source, record_id)
        return
    pairs = to_pairs(record)
    for index in itertools.count():
        if len(pairs) < PAIRS_PER_TASK + 2:
            yield _group(pairs, source, record_id, index)
            return
        yield _group(pairs[:PAIRS_PER_TASK], source, record_id, index)
        del pairs[:PAIRS_PER_TASK]


def _own_id(record: object, otherwise: str) -> str:
    if not isinstance(record, dict):
        return otherwise
    return next((to_id(record[key]) for key in ID_KEYS if key in record), otherwise)


def _check_keys(decoded: Decoded) -> None:
    if decoded.duplicate_key is not None:
        raise Rejection(
            "duplicate_key",
            f"the key {decoded.duplicate_key[:60]!r} stands twice in one object; keep one of them",
        )


def _is_lone_pair(value: object) -> bool:
    return isinstance(value, dict) and "input" in value and not is_record(value)


def _group(pairs: list[Pair], source: str, name: str, index: int) -> Item:
    task_id = f"{name}-{index:06d}"
    if len(pairs) == 1:
        return rejected(source, task_id, Rejection("no_train_pairs", "there is only one pair"))
    return Task(task_id, source, tuple(pairs[:-1]), (pairs[-1],))


def _kind_of_object(member: RawRecord) -> str:
    """What a member says of its object: record, combined, solutions, or nothing certain."""
    try:
        key, decoded = _decode_member(member)
    except Rejection:
        return "record" if _key_of(member) in CONTENT_KEYS else "broken"
    if key in CONTENT_KEYS and not isinstance(decoded.value, dict):
        return "record"
    if is_record(decoded.value):
        return "combined"
    return "solutions" if _is_list_of_grids(decoded.value) else "other"


def _is_list_of_grids(value: object) -> bool:
    for _ in range(3):
        if not isinstance(value, list) or not value:
            return False
        value = value[0]
    return not isinstance(value, list)


def _parse_record(members: Iterable[RawRecord], source: str) -> Iterator[Item]:
    """The one record of a file: a task is named by the file, a document by its id if it has one."""
    record_id = _stem(source)
    record: dict[str, object] = {}
    try:
        for member in members:
            key, decoded = _decode_member(member)
            if key in CONTENT_KEYS or key in ID_KEYS:
                _check_keys(Decoded(None, key) if key in record else decoded)
                record[key] = decoded.value
        if not is_task(record):
            record_id = _own_id(record, record_id)
        yield from to_items(record, source, to_id(record_id))
    except Rejection as rejection:
        yield rejected(source, record_id, rejection)


def _parse_combined(members: Iterable[RawRecord], source: str) -> Iterator[Item]:
    for member in members:
        record_id = _key_of(member)
        try:
            key, decoded = _decode_member(member)
            _check_keys(decoded)
            yield from to_items(decoded.value, source, to_id(key))
        except Rejection as rejection:
            yield rejected(source, record_id, rejection)


def _decode_member(member: RawRecord) -> tuple[str, Decoded]:
    decoded = decode(member, member=True)
    if not isinstance(decoded.value, dict) or len(decoded.value) != 1:
        raise Rejection("not_json", f"line {member.line}: a comma where a member should stand")
    ((key, value),) = decoded.value.items()
    return key, Decoded(value, decoded.duplicate_key)


def _key_of(member: RawRecord) -> str:
    """The key of a member that may be broken, fit to be shown as an id; else where it stands."""
    try:
        match = _KEY.match(member.text or b"")
        return to_id(json.loads(match.group())) if match else f"line-{member.line:06d}"
    except (Rejection, ValueError):
        return f"line-{member.line:06d}"


def _stem(source: str) -> str:
    """`training/007bbfb7.json.gz` is `007bbfb7`."""
    return PurePosixPath(decompressed_name(source)).stem
