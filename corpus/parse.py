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
`corpus.documents` lists more forms. A document may also be a whole file, or a value in a combined
file. On a line or in a list, the id is the value of `id`, `task_id` or `name`. A `name` that an
earlier record has is not used as the id. A null counts as absent. A record may hold its task under
`data` or `task`, and a task may be JSON text.

re-arc has 1000 pairs per task and BARC 30, more than a prompt holds. Six consecutive pairs make a
task: five training pairs, then one test pair. Solvers trained on re-arc use the same size. The last
task may have two to seven pairs. The task ids are `NAME-000000`, `NAME-000001`, ..., where `NAME`
is the file's stem or the id of BARC's record. BARC's pairs are `[input, output]`.
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
    """Yield every task and document of a file, and a `RejectedTask` for each unusable one.

    If the rest of the file cannot be read, because it is cut off or a bracket is missing, the last
    `RejectedTask` reports it. Only errors of `stream.read` propagate. Memory is bounded by the
    largest record, 16 MiB, and by the ids.

    Args:
        stream: decompressed bytes of the file; only `read(size)` is called.
        source: path of the file relative to the common root of all inputs; part of every item.
        text_field: only content to read, as in `corpus.documents`; None to read any known content.
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
    """Yield the items of consecutive lines of a file that `record_lines` accepts.

    The items are the same as from `parse_tasks`.

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
    """Return the offset of the first line of a JSON Lines file, and the bytes from that offset on.

    Returns None for other files, and for files that `parse_tasks` rejects as a whole.
    """
    offset, head, chunks = _opened(stream)
    try:
        _check_head(head)
    except Rejection:
        return None
    return (offset, chunks) if _has_record_lines(head, source) else None


def _opened(stream: BinaryIO) -> tuple[int, bytes, Iterator[bytes]]:
    """Return the length of the byte order mark, then the first bytes and all bytes after it."""
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
        raise Rejection("empty_file", f"only white space ({len(head)} bytes)")
    seen = f"begins with {repr(start)[1:]}"
    for mark, name in _COMPRESSED.items():
        if start.startswith(mark):
            advice = "decompress it, or add the suffix of its format (.gz, .bz2, .xz, .zst)"
            raise Rejection("compressed_file", f"{seen}, which is {name} data; {advice}")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise Rejection("bad_encoding", f"{seen}: UTF-16 or binary; only UTF-8 is supported")
    if start.startswith(GIT_LFS):
        raise Rejection("not_json", f"{seen}: a Git LFS pointer; run git lfs pull")
    if start[:1] not in b"[{" and not _has_record_lines(head, ""):
        raise Rejection("not_json", f"{seen}; a file of tasks must begin with {{ or [")


def _has_record_lines(head: bytes, source: str) -> bool:
    """Return True for JSON Lines, False for one JSON value.

    In a single value, `{` can only follow `[`, `,` or `:`. A file with a single object could be
    either, so its name decides, which also determines the id of the object.
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
