"""Names and ids that repeat in a file, the only dependency of a record on earlier records.

The blocks of a file are read independently. `OwnIds` checks quickly if any record may depend on
another record. If so, `Seen` finds the names and ids of earlier blocks that each block needs.
"""

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from corpus.task import Document, Item, Notice, Rejection, Task
from corpus.validate import id_key_of, to_id

Key = str | bytes
"""A text, or the digest of a long text, which bounds memory."""

_LONGEST_KEY = 32

# The ids of a record's tasks and samples are the record's id with such a suffix.
_SUFFIX = re.compile(r"(.+)[/-][0-9]+", re.DOTALL)


class Seen:
    """Names or ids of the records of a file that were read so far.

    Args:
        earlier: result of `end_block` for a block, needed to read only that block.
    """

    def __init__(self, earlier: Iterable[Key] = ()) -> None:
        self._earlier = set(earlier)
        self._here = set[Key]()
        self._met = set[Key]()

    def __contains__(self, text: str) -> bool:
        key = _key(text)
        if key in self._earlier:
            self._met.add(key)
            return True
        return key in self._here

    def add(self, text: str) -> None:
        """Add a name or an id."""
        self._here.add(_key(text))

    def end_block(self) -> frozenset[Key]:
        """End a block and return the names or ids of earlier blocks that it looked up."""
        met = frozenset(self._met)
        self._earlier |= self._here
        self._here, self._met = set(), set()
        return met


def without_repeated_ids(items: Iterable[Item], source: str, ids: Seen) -> Iterator[Item]:
    """Reject each item with the id of an earlier item's sample. Memory grows with the ids.

    Args:
        items: items of a file, in order.
        source: name of the file.
        ids: ids of earlier items of the file. Ids of these items are added.
    """
    for item in items:
        if isinstance(item, Notice):
            yield item
            continue
        if isinstance(item, Task):
            item_id = item.task_id
            claimed = [f"{item_id}/{index}" for index in range(len(item.test))]
        elif isinstance(item, Document):
            item_id = item.document_id
            claimed = [item_id]
        else:  # A rejected record could be a task or a document.
            item_id = ""
            claimed = [item.task_id, f"{item.task_id}/0"] if item.task_id else []
        if item_id and any(each in ids for each in claimed):
            advice = "an earlier record of the file has this id; give each record its own id"
            yield Rejection("duplicate_id", advice).of(source, item_id)
        else:
            yield item
        for each in claimed:
            ids.add(each)


class OwnIds:
    """Explicit ids of the records of a file, as opposed to ids made from positions.

    Args:
        default: first word of the ids made from positions, such as `line`.

    Attributes:
        may_repeat: True if a record may depend on an earlier one, False if none does.
    """

    def __init__(self, default: str) -> None:
        self.may_repeat = False
        self._default = default
        self._ids = set[Key]()
        self._roots = set[Key]()

    def add(self, record: object) -> None:
        """Add the id of a record, if it has one."""
        id_key = id_key_of(record) if isinstance(record, dict) else None
        if not isinstance(record, dict) or id_key is None:
            return
        try:
            record_id = to_id(record[id_key])
        except Rejection:
            # Only the first record whose name is not a valid id gets a notice.
            self.may_repeat |= id_key == "name"
            return
        key = _key(record_id)
        self.may_repeat |= f"{record_id}-".startswith(f"{self._default}-")
        self.may_repeat |= key in self._ids or key in self._roots
        self._ids.add(key)
        # A sample id of task `a`, such as `a/0`, may be the id of another record.
        while match := _SUFFIX.fullmatch(record_id):
            record_id = match[1]
            self.may_repeat |= (root := _key(record_id)) in self._ids
            self._roots.add(root)


def _key(text: str) -> Key:
    if len(text) <= _LONGEST_KEY:
        return text
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
