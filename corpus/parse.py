"""Read tasks and documents from a file of any known format, told apart by what the file holds.

    {"train": [pair, ...], "test": [pair, ...]}     one ARC task; its id is the file's stem
    {id: task, id: task, ...}                       Kaggle's combined file
    a task or document on each line                 JSON Lines; its id, or "line-000012" (from 1)
    [task or document, ...]                         a list; its id, or "item-000012" (from 0)
    [pair, pair, ...]                               re-arc's pairs of one task; see below
    {"source": ..., "examples": [pair, ...]}        BARC's pairs of one task; see below

A pair is `{"input": grid, "output": grid}`, a document `{"id", "text"}` or `{"id", "messages"}`.
A document may also be a whole file, or a value in a combined file. On a line or in a list, an id
stands under `id`, `task_id` or `name`.

re-arc has 1000 pairs for each task and BARC 30, more than a prompt holds. Consecutive groups of six
become the tasks `NAME-000000`, `NAME-000001`, ..., where the name is the file's stem, or the id of
BARC's record (on a line, "line-000012"): five pairs to learn from and the last as the test, the
size that solvers trained on re-arc cut it to. The last group may have two to seven pairs. BARC's
pairs are `[input, output]`.
"""

import io
import itertools
from collections.abc import Iterator
from typing import BinaryIO

from corpus.json_stream import MAX_RECORD_BYTES, RawRecord, Rejection, decode, read_chunks
from corpus.layouts import (
    Item,
    decompressed_name,
    parse_lines,
    parse_list,
    parse_object,
    rejected,
    without_repeated_ids,
)

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
}
_HEAD_LINES = 16


def parse_tasks(stream: BinaryIO, source: str) -> Iterator[Item]:
    """Yield every task and document of a file, and a `RejectedTask` for each that cannot be used.

    A bad record never stops the file; where the file itself cannot be read on (it is cut short, a
    bracket is missing), a last `RejectedTask` says so. Whatever the bytes, nothing is raised but
    what `stream.read` raises. Memory is bounded by one record of 16 MiB, and a digest of each id.

    Args:
        stream: the file's bytes, decompressed.
        source: the file's path relative to the common root of all inputs; part of every value.
    """
    yield from without_repeated_ids(_parse(stream, source), source)


def _parse(stream: BinaryIO, source: str) -> Iterator[Item]:
    chunks = read_chunks(stream)
    head = _read_head(chunks)
    try:
        _check_head(head)
        everything = itertools.chain([head], chunks)
        if _has_record_lines(head, source):
            yield from parse_lines(everything, source)
        elif head.lstrip().startswith(b"["):
            yield from parse_list(everything, source)
        else:
            yield from parse_object(everything, source)
    except Rejection as rejection:
        yield rejected(source, "", rejection)


def _read_head(chunks: Iterator[bytes]) -> bytes:
    """Enough of the file to tell its format: some lines, or as much as the largest record."""
    head = bytearray()
    while len(head) < MAX_RECORD_BYTES and head.strip().count(b"\n") < _HEAD_LINES:
        chunk = next(chunks, b"")
        if not chunk:
            break
        head += chunk
    return bytes(head).removeprefix(b"\xef\xbb\xbf")


def _check_head(head: bytes) -> None:
    start = head.lstrip()[:20]
    seen = repr(start)[1:]
    if not start:
        raise Rejection("empty_file", f"there is nothing but white space ({len(head)} bytes)")
    for mark, name in _COMPRESSED.items():
        if start.startswith(mark):
            raise Rejection(
                "compressed_file",
                f"this is {name} data; decompress it, or name it so that it is read as such (.gz)",
            )
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        raise Rejection("bad_encoding", f"begins with {seen}: UTF-16 or binary; only UTF-8")
    if start[:1] not in b"{[" and not _has_record_lines(head, ""):
        raise Rejection("not_json", f"begins with {seen}; a file of tasks begins with {{ or [")


def _has_record_lines(head: bytes, source: str) -> bool:
    """Whether this is JSON Lines and not one JSON value.

    In one value, `{` only ever follows `[`, `,` or `:`. A lone object is both; there its name
    decides, because a record takes its id from its key and a file from its name.
    """
    stripped = map(bytes.strip, io.BytesIO(head))
    lines = list(itertools.islice(filter(None, stripped), _HEAD_LINES))
    if len(lines) == 1 and decompressed_name(source).endswith((".jsonl", ".ndjson")):
        return _is_object(lines[0])
    return any(
        line.startswith(b"{") and before[-1:] not in b"[,:" and any(map(_is_object, (before, line)))
        for before, line in itertools.pairwise(lines)
    )


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(decode(RawRecord(1, line)).value, dict)
    except Rejection:
        return False
