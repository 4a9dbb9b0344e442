"""Read tasks and documents from a JSON file of any known layout, recognized by its content.

The layouts::

    {"train": [pair, ...], "test": [pair, ...]}     one ARC task; its id is the file's stem
    {id: task, id: task, ...}                       Kaggle's combined file
    {split: {id: task, ...}, split: [task, ...]}    collections; a repeated id becomes "split/id"
    a task or document on each line                 JSON Lines; its id, or "line-000012" (from 1)
    [task or document, ...]                         a list; its id, or "item-000012" (from 0)
    [pair, pair, ...]                               re-arc's pairs of one task; see below
    {"source": ..., "examples": [pair, ...]}        BARC's pairs of one task; see below

A pair is `{"input": grid, "output": grid}`, a document `{"id", "text"}` or `{"id", "messages"}`;
`corpus.documents` has more forms.
A document may also be a whole file, or a value in a combined file. On a line or in a list, the id
is the value of `id`, `task_id` or `name`. A `name` that an earlier record has is no id. A null
counts as absent. A record may hold its task as `data` or `task`, and a task may be JSON text.

re-arc has 1000 pairs for each task and BARC 30, more than a prompt holds. Six consecutive pairs
make a task: five to learn from and the last as the test, the size that solvers trained on re-arc
use. The last task may have two to seven pairs. The tasks are called `NAME-000000`, `NAME-000001`,
..., after the file's stem or the id of BARC's record. BARC's pairs are `[input, output]`.
"""

import codecs
import io
import itertools
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from corpus.json_records import GIT_LFS, MAX_RECORD_BYTES
from corpus.layouts import decompressed_name, parse_lines, parse_list, parse_object
from corpus.repeats import Seen, without_repeated_ids
from corpus.task import Item, Rejection

_READ_BYTES = 2**20
_HEAD_LINES = 16
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
}


def parse_tasks(stream: BinaryIO, source: str, text_field: str | None = None) -> Iterator[Item]:
    """Yield every task and document of a file, and a `RejectedTask` for each that is unusable.

    If the file cannot be read on (it is cut off, a bracket is missing), the last `RejectedTask`
    says so. Whatever the bytes, nothing is raised but what `stream.read` raises. Memory is bounded
    by the largest record, of 16 MiB, and the ids.

    Args:
        stream: the file's bytes, decompressed; only `read(size)` is called.
        source: the file's path relative to the common root of all inputs; part of every item.
        text_field: the only content to read, as in `corpus.documents`; None for what is found.
    """
    yield from without_repeated_ids(_parse(stream, source, text_field), source, Seen())


def parse_some_lines(
    chunks: Iterator[bytes],
    source: str,
    text_field: str | None,
    first: int,
    names: Seen,
    ids: Seen,
) -> Iterator[Item]:
    """Yield what `parse_tasks` does for consecutive lines of a file that `record_lines` accepts.

    Args:
        chunks: bytes of the lines.
        source: name of the file, as in `parse_tasks`.
        text_field: only content to read, as in `parse_tasks`.
        first: number of the first line, from 1.
        names: names in earlier lines. Names in these lines are added.
        ids: ids in earlier lines. Ids in these lines are added.
    """
    items = parse_lines(chunks, source, text_field, names, first)
    yield from without_repeated_ids(items, source, ids)


def record_lines(stream: BinaryIO, source: str) -> tuple[int, Iterator[bytes]] | None:
    """Return the offset of the first line of a JSON Lines file and its bytes from there on.

    Returns None for other files, and for those that `parse_tasks` rejects as a whole.
    """
    offset, head, chunks = _opened(stream)
    try:
        _check_head(head)
    except Rejection:
        return None
    return (offset, chunks) if _has_record_lines(head, source) else None


def _opened(stream: BinaryIO) -> tuple[int, bytes, Iterator[bytes]]:
    """Return the length of the byte order mark, then the first bytes after it, and all of them."""
    chunks = iter(partial(stream.read, _READ_BYTES), b"")
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= MAX_RECORD_BYTES or head.strip().count(b"\n") >= _HEAD_LINES:
            break
    text = head.removeprefix(codecs.BOM_UTF8)
    return len(head) - len(text), text, itertools.chain([text], chunks)


def _parse(stream: BinaryIO, source: str, text_field: str | None) -> Iterator[Item]:
    _, head, chunks = _opened(stream)
    try:
        _check_head(head)
        if _has_record_lines(head, source):
            yield from parse_lines(chunks, source, text_field, Seen())
        elif head.lstrip().startswith(b"["):
            yield from parse_list(chunks, source, text_field)
        else:
            yield from parse_object(chunks, source, text_field)
    except Rejection as rejection:
        yield rejection.of(source)


def _check_head(head: bytes) -> None:
    start = head.lstrip()[:20]
    if not start:
        raise Rejection("empty_file", f"nothing but white space ({len(head)} bytes)")
    seen = f"begins with {repr(start)[1:]}"
    for mark, name in _COMPRESSED.items():
        if start.startswith(mark):
            advice = "decompress it, or give it the suffix of its kind (.gz, .bz2, .xz, .zst)"
            raise Rejection("compressed_file", f"{seen}, which is {name} data; {advice}")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise Rejection("bad_encoding", f"{seen}: UTF-16 or binary; only UTF-8 is read")
    if start.startswith(GIT_LFS):
        raise Rejection("not_json", f"{seen}: a pointer of Git LFS; run git lfs pull")
    if start[:1] not in b"[{" and not _has_record_lines(head, ""):
        raise Rejection("not_json", f"{seen}; a file of tasks begins with {{ or [")


def _has_record_lines(head: bytes, source: str) -> bool:
    """Return True for JSON Lines, False for one JSON value.

    In one value, `{` only ever follows `[`, `,` or `:`. A file with a single object could be both;
    its name decides, because it also decides about the id of the object.
    """
    stripped = filter(None, map(bytes.strip, io.BytesIO(head)))
    lines = list(itertools.islice(stripped, _HEAD_LINES))
    if len(lines) == 1:
        is_lines = decompressed_name(source).lower().endswith((".jsonl", ".ndjson"))
        return is_lines and lines[0].startswith(b"{")
    return any(
        line.startswith(b"{") and not before.endswith((b"[", b",", b":"))
        for before, line in itertools.pairwise(lines)
    )
