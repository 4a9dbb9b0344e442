"""The protobuf wire format: varints, fields and messages.

Source: https://protobuf.dev/programming-guides/encoding/. A message that is read is a span
(start, end) of one view, never copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Wire types; a tag is field number << 3 | wire type.
VARINT, FIXED64, BYTES, START_GROUP, END_GROUP, FIXED32 = range(6)
_MAX_GROUP_DEPTH = 100

Span = tuple[int, int]
Field = tuple[int, int, int, int]
"""Field number, wire type, start and end of the content."""


class WireError(ValueError):
    """Bytes that are no protobuf message."""


def varint(value: int) -> bytes:
    """Base 128, least significant group first; negative numbers as 64-bit two's complement."""
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    value &= 0xFFFFFFFFFFFFFFFF
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


_ONE_BYTE = [bytes([value]) for value in range(0x80)]


def varints(values: Sequence[int]) -> bytes:
    """Varints end to end."""
    return b"".join([varint(value) for value in values])


def varint_array(values: NDArray[np.int32]) -> bytes:
    """Varints of [n] integers, each in 0..2^31 - 1."""
    if len(values) <= 8:
        return varints(values.tolist())
    groups = values.astype(np.uint32)[:, None] >> np.arange(0, 35, 7, dtype=np.uint32)
    used = groups != 0
    used[:, 0] = True
    encoded = (groups & 0x7F).astype(np.uint8)
    encoded[:, :-1][used[:, 1:]] |= 0x80
    return bytes(encoded[used])


def field(tag: bytes, content: bytes) -> bytes:
    """A length-delimited field."""
    return tag + varint(len(content)) + content


def read_varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    """(value, position after it), the value unsigned."""
    result = shift = 0
    while position < end:
        byte = view[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
        if shift == 70:
            raise WireError("a varint is longer than 10 bytes")
    raise WireError("a message ends inside a varint")


def fields(view: memoryview, start: int, end: int) -> list[Field]:
    """The fields of the message at start..end. The content of a varint is its bytes."""
    found = []
    position = start
    while position < end:
        tag = view[position]
        if 8 <= tag < 0x80:
            position += 1
        else:
            tag, position = _read_tag(view, position, end)
        content, position = _content(view, position, end, tag, 0)
        found.append((tag >> 3, tag & 7, content, position))
    return found


def _read_tag(view: memoryview, position: int, end: int) -> tuple[int, int]:
    """(tag, position after it)."""
    tag, after = read_varint(view, position, end)
    if not 8 <= tag <= 0xFFFFFFFF or after - position > 5:
        raise WireError(f"{tag} is not the tag of a field")
    return tag, after


def _content(view: memoryview, position: int, end: int, tag: int, depth: int) -> Span:
    """Span of the content of the field whose tag ends at `position`."""
    start = position
    wire_type = tag & 7
    if wire_type == BYTES:
        length, start = read_varint(view, position, end)
        position = start + length
    elif wire_type == VARINT:
        _, position = read_varint(view, position, end)
    elif wire_type == FIXED64:
        position += 8
    elif wire_type == FIXED32:
        position += 4
    elif wire_type == START_GROUP and depth < _MAX_GROUP_DEPTH:
        while True:
            inner, position = _read_tag(view, position, end)
            if inner == tag + 1:  # the end of the group of that number
                break
            _, position = _content(view, position, end, inner, depth + 1)
    else:
        raise WireError(f"field {tag >> 3} has wire type {wire_type}, which is not allowed here")
    if position > end:
        raise WireError(f"field {tag >> 3} reaches past the end of its message")
    return start, position


def messages(view: memoryview, message: Span, number: int) -> list[Span]:
    """Spans of the message's length-delimited fields of that number; others are skipped."""
    return [
        (start, end)
        for found, wire_type, start, end in fields(view, *message)
        if found == number and wire_type == BYTES
    ]


def unpack_varints(packed: memoryview) -> NDArray[np.int64]:
    """[n] int64 of varints end to end."""
    encoded = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(encoded < 0x80)
    if not len(encoded):
        return np.empty(0, np.int64)
    if not len(ends) or ends[-1] != len(encoded) - 1:
        raise WireError("a message ends inside a varint")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise WireError("a varint is longer than 10 bytes")
    places = np.arange(len(encoded)) - np.repeat(starts, lengths)
    groups = (encoded & 0x7F).astype(np.uint64) << (7 * places).astype(np.uint64)
    return np.add.reduceat(groups, starts).view(np.int64)
