"""Read JSON one record at a time: the lines of a JSON Lines file, or the members of a document.

Python's own parser reads every record, so all layouts accept and reject the same JSON. An invalid
line loses only that line. Reading of a document stops at its first syntax error, because the end of
the invalid member is unknown. The members before the error are read.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from corpus.task import Rejection

MAX_RECORD_BYTES = 16 * 2**20
"""Size of the largest record that is read. It bounds memory."""

GIT_LFS = b"version https://git"
"""First bytes of the pointer that Git LFS leaves in place of a file that was not downloaded."""

# An error within this many characters of the end of a chunk may disappear with the next chunk.
_LONGEST_TOKEN = len(r"\ud83d\ude00")

_SPACE = re.compile(r"[ \t\r\n]*")

DUPLICATE = None
"""Key under which a parsed object names a repeated key. All keys of JSON itself are strings."""


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file, each truncated to `MAX_RECORD_BYTES + 1` bytes."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line[: MAX_RECORD_BYTES + 1]
        rest = rest[: MAX_RECORD_BYTES + 1]
    yield rest


def line_blocks(chunks: Iterator[bytes], size: int) -> Iterator[Iterator[bytes]]:
    """Yield blocks of whole lines, each an iterator of chunks.

    All blocks but the last have `size` bytes or more. The caller must consume the chunks of a block
    before it takes the next block.
    """
    rest = next(chunks, b"")

    def block() -> Iterator[bytes]:
        nonlocal rest
        left = size
        while chunk := rest:
            end = chunk.find(b"\n", max(left - 1, 0)) + 1
            rest = chunk[end:] if end else b""
            rest = rest or next(chunks, b"")
            yield chunk[:end] if end else chunk
            if end:
                return
            left -= len(chunk)

    while rest:
        yield block()


def parse_line(line: bytes, number: int) -> object:
    """Return the value of a line of a JSON Lines file, or raise `Rejection`."""
    if len(line) > MAX_RECORD_BYTES:
        raise _too_large(number)
    try:
        return _DECODER.decode(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        pass  # The code below finds the error again and reports its position.
    text = _JsonText(iter([line]), number)
    value = text.value()
    text.take("")
    return value


def members(chunks: Iterator[bytes]) -> Iterator[tuple[str | None, object]]:
    """Yield the key and value of each member of a JSON array or object; an array's keys are None.

    Raises:
        Rejection: the rest of the document cannot be read. The members before it were yielded.
    """
    text = _JsonText(chunks)
    is_object = text.take("[", "{") == "{"
    closing = "}" if is_object else "]"
    mark = text.take(closing) if text.peek() == closing else ","
    while mark != closing:
        key = text.key() if is_object else None
        yield key, text.value()
        mark = text.take(",", closing)
    text.take("")


class _JsonText:
    """A window over JSON text that moves from one value to the next."""

    def __init__(self, chunks: Iterator[bytes], line: int = 1) -> None:
        # Bytes that are not UTF-8 become lone surrogates, which texts and ids must not contain.
        self._chunks = codecs.iterdecode(chunks, "utf-8", "surrogateescape")
        self._parse = _DECODER.raw_decode
        self._text = ""
        self._position = 0
        self._first_line = line

    def peek(self) -> str:
        """Return the next character that is not white space, or "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._position)
            self._position = space.end() if space else self._position
            if self._position < len(self._text) or not self._read_more():
                return self._text[self._position : self._position + 1]

    def take(self, *allowed: str) -> str:
        """Consume and return the next character that is not white space; "" is the end."""
        mark = self.peek()
        if mark not in allowed:
            expected = " or ".join(allowed) or "the end; write each value on its own line"
            raise self._fault(f"expected {expected}")
        self._position += len(mark)
        return mark

    def key(self) -> str:
        if self.peek() not in ('"', ""):
            raise self._fault("expected a key in double quotes")
        key = str(self.value())
        self.take(":")
        return key

    def value(self) -> object:
        self.peek()
        while True:
            try:
                value, end = self._parse(self._text, self._position)
            except json.JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated string")
                is_cut = is_open or error.pos + _LONGEST_TOKEN > len(self._text)
                if not (is_cut and self._read_more()):
                    self._position = len(self._text) if is_open else error.pos
                    raise self._fault(error.msg) from None
            except (RecursionError, ValueError) as error:  # ValueError: thousands of digits
                reason = "too_deep" if isinstance(error, RecursionError) else "not_json"
                raise Rejection(reason, f"line {self._line()}: {error}") from None
            else:
                # A number may continue in the next chunk: 1 may be 12, and 1e+ may be 1e+2.
                if end + 2 < len(self._text) or not self._read_more():
                    self._position = end
                    return value

    def _read_more(self) -> bool:
        """Drop the parsed text and at least double the rest, which keeps retries few."""
        held = len(self._text) - self._position
        if held > MAX_RECORD_BYTES:
            raise _too_large(self._line())
        more = next(self._chunks, "")
        while 0 < len(more) < min(held, MAX_RECORD_BYTES - held):
            chunk = next(self._chunks, "")
            if not chunk:
                break
            more += chunk
        if more:
            self._first_line = self._line()
            self._text = self._text[self._position :] + more
            self._position = 0
        return more != ""

    def _line(self) -> int:
        return self._first_line + self._text.count("\n", 0, self._position)

    def _fault(self, detail: str) -> Rejection:
        where = f"line {self._line()}: {detail}"
        if seen := self._text[self._position : self._position + 20].rstrip():
            return Rejection("not_json", f"{where}, found {seen!r}")
        detail = f"{where}; the text is cut off, or a bracket or a quote is not closed"
        return Rejection("truncated_json", detail)


def _too_large(line: int) -> Rejection:
    detail = f"line {line}: the record has more than {MAX_RECORD_BYTES} bytes"
    return Rejection("record_too_large", detail)


def _to_object(pairs: list[tuple[str, object]]) -> dict[str | None, object]:
    value: dict[str | None, object] = dict(pairs)
    if len(value) < len(pairs):
        ((value[DUPLICATE], _),) = Counter(key for key, _ in pairs).most_common(1)
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_to_object)
