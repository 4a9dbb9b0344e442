"""Cut a JSON file into records, holding one record at a time and not the file.

A record is a line of a JSON Lines file, or a member of the one object or array that a JSON file
is. Only brackets and quotes are looked at here; `decode` then parses each record by itself with
the strict parser of the standard library. So a record that is broken inside (a stray comma, an
unquoted word, bytes that are not UTF-8) costs that record only: what follows it is still read.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAX_RECORD_BYTES = 16 * 2**20
"""The largest record that is read; a larger one is reported and skipped. Bounds memory."""

CHUNK_BYTES = 2**20

_AT_TOP = re.compile(rb'["\[\]{},]')
_NESTED = re.compile(rb'(?:[\[{][^"\[\]{}]*+[\]}][\s,]*+)++|["\[\]{}]')  # a grid's rows as one
_IN_STRING = re.compile(rb'["\\]')


class Rejection(Exception):
    """Why a record, or a file, cannot be used: `reason` is a key of `corpus.task.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record as it stands in the file, without the white space around it.

    `line` is the line, from 1, of its first character. The text of an object's member is
    `"key": value`; it is None where the record is larger than `MAX_RECORD_BYTES`.
    """

    line: int
    text: bytes | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """A JSON value, and the first key that stands twice in one of its objects, if any does."""

    value: object
    duplicate_key: str | None


def read_chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of a binary stream, 1 MiB at a time."""
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def split_lines(chunks: Iterable[bytes]) -> Iterator[RawRecord]:
    """The lines of a file that are not blank."""
    record = _RecordBuffer()
    for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start) + 1) > 0:
            record.add(chunk[start:end])
            start = end
            if not record.is_blank:
                yield record.take()
        record.add(chunk[start:])
    if not record.is_blank:
        yield record.take()


def split_members(chunks: Iterable[bytes]) -> Iterator[RawRecord]:
    """The members of the object or array that a file is; its first bracket opens it.

    Raises:
        Rejection: `truncated_json` or `not_json`, after the members that precede the fault.
    """
    record = _RecordBuffer()
    opening = b""
    depth = members = position = 0
    in_string = closed = False
    for chunk in chunks:
        start = 0
        while not closed:
            pattern = _IN_STRING if in_string else _NESTED if depth > 1 else _AT_TOP
            if (match := pattern.search(chunk, position)) is None:
                break
            token, position = match.group(), match.end()
            if len(token) > 1:
                pass  # what opens and closes leaves the depth as it is
            elif token == b"\\":
                position += 1  # whatever it escapes, even in the next chunk
            elif token == b'"':
                in_string = not in_string
            elif token in b"[{":
                depth += 1
                if depth == 1:
                    opening, start = token, position
            elif token == b"," or depth == 1:
                record.add(chunk[start : position - 1])
                start = position
                closed = token != b","
                if not (closed and members == 0 and record.is_blank):
                    members += 1
                    yield record.take()
                if closed and opening + token not in (b"[]", b"{}"):
                    raise Rejection(
                        "not_json",
                        f"line {record.line}: {token.decode()} where {opening.decode()} is open",
                    )
            else:
                depth -= 1
        record.add(chunk[start:])
        if closed and not record.is_blank:
            break
        position = max(position - len(chunk), 0)

    rest = record.take()
    seen = repr((rest.text or b"")[:20])[1:]
    if not closed:
        raise Rejection(
            "truncated_json",
            f"line {rest.line}: after {members} complete members the file ends inside one that "
            f"begins with {seen}: it is cut off, or a bracket or a quote is not closed",
        )
    if rest.text != b"":
        raise Rejection(
            "not_json",
            f"line {rest.line}: {seen} stands after the end of the file's JSON value; several "
            "values in one file must stand on a line each",
        )


def decode(record: RawRecord, *, member: bool = False) -> Decoded:
    """Parse one record strictly, noting duplicate keys; a `member` becomes an object of one key.

    `NaN` and `Infinity`, which Python writes, are read as floats.

    Raises:
        Rejection: `not_json`, `bad_encoding`, `too_deep` or `record_too_large`.
    """
    if record.text is None:
        raise Rejection(
            "record_too_large",
            f"the record on line {record.line} has more than {MAX_RECORD_BYTES} bytes",
        )
    repeated: list[str] = []

    def note_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated.append(next(key for key, count in counts.items() if count > 1))
        return members

    text = b"{" + record.text + b"}" if member else record.text
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=note_repeated)
    except UnicodeDecodeError as error:
        line = record.line + text.count(b"\n", 0, error.start)
        seen = text[error.start : error.start + 4].hex(" ")
        raise Rejection("bad_encoding", f"line {line}: the bytes {seen} are not UTF-8") from None
    except json.JSONDecodeError as error:
        line = record.line + error.lineno - 1
        seen = repr(error.doc[error.pos : error.pos + 20])
        raise Rejection("not_json", f"line {line}: {error.msg}, at {seen}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise Rejection("not_json", f"line {record.line}: {error}") from None
    except RecursionError:
        raise Rejection(
            "too_deep", f"line {record.line}: the brackets are nested too deeply for a record"
        ) from None
    return Decoded(value, repeated[0] if repeated else None)


class _RecordBuffer:
    """Gathers the pieces of a record; counts, and no longer keeps, the bytes beyond the limit."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._next_line = 1
        self.line = 1

    @property
    def is_blank(self) -> bool:
        return self._size == 0

    def add(self, piece: bytes) -> None:
        if self.is_blank:
            text = piece.lstrip()
            self._next_line += piece.count(b"\n", 0, len(piece) - len(text))
            self.line = self._next_line
            piece = text
        self._next_line += piece.count(b"\n")
        self._size += len(piece)
        if self._size <= MAX_RECORD_BYTES:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def take(self) -> RawRecord:
        """The record gathered so far; an empty one follows."""
        whole = self._size <= MAX_RECORD_BYTES
        record = RawRecord(self.line, b"".join(self._pieces).rstrip() if whole else None)
        self._pieces.clear()
        self._size = 0
        return record
