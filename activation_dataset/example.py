"""One record's data: a tf.train.Example with exactly the features of an activation record.

The protobuf wire format is written and read by hand, so that neither TensorFlow nor protobuf is
needed. Sources: tensorflow/core/example/{example,feature}.proto for the messages,
https://protobuf.dev/programming-guides/encoding/ for the format. Encoded bytes equal those of
TensorFlow's SerializeToString(deterministic=True), which sorts the features by name:

    activation  bytes, raw little-endian elements      shape      int64 list
    num_tokens  int64                                  task_id    bytes, UTF-8
    sample_id   bytes, UTF-8                           token_ids  int64 list
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import Sample

# Tags: field number << 3 | wire type.
_VARINT, _FIXED64, _BYTES, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_FIELD_1, _FIELD_2, _FIELD_3 = b"\x0a", b"\x12", b"\x1a"  # length-delimited
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3  # fields of Feature
_KINDS = {_BYTES_LIST: "a bytes list", _FLOAT_LIST: "a float list", _INT64_LIST: "an int64 list"}
_VALUE_TYPES = {
    _BYTES_LIST: (_BYTES,),
    _FLOAT_LIST: (_BYTES, _FIXED32),
    _INT64_LIST: (_BYTES, _VARINT),  # packed or not
}
_MAX_GROUP_DEPTH = 100

Span = tuple[int, int]
Field = tuple[int, int, int, int]
"""Field number, wire type, start and end of the content."""
Features = dict[bytes, tuple[int, list[Span]]]
"""Name of a feature to its kind and values."""


class ExampleError(ValueError):
    """Bytes that are not an activation record; says which part is wrong."""


@dataclass(frozen=True, eq=False)
class DecodedExample:
    """What a record holds.

    Attributes:
        sample: sample_id, task_id, token_ids and num_tokens.
        shape: (hidden,) or (num_tokens, hidden).
        activation: the raw bytes, a view of the data that was decoded.
    """

    sample: Sample
    shape: tuple[int, ...]
    activation: memoryview


def encode_prefix(payload_bytes: int, suffix_bytes: int) -> bytes:
    """What comes before the activation's bytes: lengths and its name, which sorts first.

    Args:
        payload_bytes: bytes of the activation.
        suffix_bytes: bytes of what `encode_suffix` returns.
    """
    lengths = []
    length = payload_bytes
    # From the inside: BytesList.value, Feature.bytes_list, the map entry's value.
    for _ in range(3):
        lengths.append(_varint(length))
        length += 1 + len(lengths[-1])
    value, bytes_list, feature = lengths
    entry = _FIELD_1 + b"\x0aactivation" + _FIELD_2 + feature
    entry += _FIELD_1 + bytes_list + _FIELD_1 + value
    entry_bytes = len(entry) + payload_bytes
    opening = _FIELD_1 + _varint(entry_bytes)
    return _FIELD_1 + _varint(len(opening) + entry_bytes + suffix_bytes) + opening + entry


def encode_suffix(sample: Sample, shape: Sequence[int]) -> bytes:
    """What comes after the activation's bytes: the other features. The same in every layer.

    Args:
        sample: the sample.
        shape: the feature `shape`.
    """
    return b"".join(
        (
            _entry(b"num_tokens", _int64_feature(_varints((sample.num_tokens,)))),
            _entry(b"sample_id", _bytes_feature(sample.sample_id.encode("utf-8"))),
            _entry(b"shape", _int64_feature(_varints(shape))),
            _entry(b"task_id", _bytes_feature(sample.task_id.encode("utf-8"))),
            _entry(b"token_ids", _int64_feature(_varint_array(sample.token_ids))),
        )
    )


def decode_example(data: bytes | memoryview) -> DecodedExample:
    """Reads a record's data; copies all but the activation.

    Any order of fields and features, packed or unpacked lists, unknown fields and features are
    accepted, as protobuf demands. Missing features and wrong types are not.

    Raises:
        ExampleError: the bytes are not protobuf, or not an activation record.
    """
    view = memoryview(data)
    features: Features = {}
    for message in _messages(view, (0, len(view)), 1):
        for entry in _messages(view, message, 1):
            name, kind, values = _short_entry(view, *entry) or _entry_of(view, *entry)
            features[name] = kind, values  # a name that comes again replaces the first
    num_tokens = _integers(view, features, b"num_tokens")
    if len(num_tokens) != 1 or num_tokens[0] < 0:
        raise ExampleError(f"num_tokens is {num_tokens[:4]}, expected one integer of at least 0")
    shape = _integers(view, features, b"shape")
    if len(shape) not in (1, 2) or min(shape) < 0:
        raise ExampleError(f"shape is {shape[:4]}, expected one or two integers of at least 0")
    token_ids = _integer_array(view, features, b"token_ids")
    if len(token_ids) and (token_ids.min() < 0 or token_ids.max() > 0x7FFFFFFF):
        raise ExampleError("token_ids has a value outside 0..2147483647")
    return DecodedExample(
        Sample(
            sample_id=_text(view, features, b"sample_id"),
            task_id=_text(view, features, b"task_id"),
            token_ids=token_ids.astype(np.int32),
            num_tokens=num_tokens[0],
        ),
        tuple(shape),
        _single_bytes(view, features, b"activation"),
    )


# Encoding


def _varint(value: int) -> bytes:
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


def _varints(values: Sequence[int]) -> bytes:
    return b"".join([_varint(value) for value in values])


def _varint_array(values: NDArray[np.int32]) -> bytes:
    """Varints of [n] integers, each in 0..2^31 - 1."""
    if len(values) <= 8:
        numbers = values.tolist()
        if numbers and min(numbers) < 0:
            raise ValueError(f"token_ids has the negative value {min(numbers)}")
        return _varints(numbers)
    if values.min() < 0:
        raise ValueError(f"token_ids has the negative value {values.min()}")
    groups = values.astype(np.uint32)[:, None] >> np.arange(0, 35, 7, dtype=np.uint32)
    used = groups != 0
    used[:, 0] = True
    encoded = (groups & 0x7F).astype(np.uint8)
    encoded[:, :-1][used[:, 1:]] |= 0x80
    return bytes(encoded[used])


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _entry(name: bytes, feature: bytes) -> bytes:
    """One entry of the map Features.feature."""
    return _field(_FIELD_1, _field(_FIELD_1, name) + _field(_FIELD_2, feature))


def _bytes_feature(value: bytes) -> bytes:
    return _field(_FIELD_1, _field(_FIELD_1, value))


def _int64_feature(packed: bytes) -> bytes:
    return _field(_FIELD_3, _field(_FIELD_1, packed) if packed else b"")


# Decoding: messages are spans (start, end) of the one view, never copied.


def _read_varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
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
            raise ExampleError("a varint is longer than 10 bytes")
    raise ExampleError("a message ends inside a varint")


def _fields(view: memoryview, start: int, end: int) -> list[Field]:
    """The fields of the message at start..end. The content of a varint is its bytes."""
    fields = []
    position = start
    while position < end:
        tag = view[position]
        if 8 <= tag < 0x80:
            position += 1
        else:
            tag, position = _read_tag(view, position, end)
        content, position = _content(view, position, end, tag, 0)
        fields.append((tag >> 3, tag & 7, content, position))
    return fields


def _read_tag(view: memoryview, position: int, end: int) -> tuple[int, int]:
    """(tag, position after it)."""
    tag, after = _read_varint(view, position, end)
    if not 8 <= tag <= 0xFFFFFFFF or after - position > 5:
        raise ExampleError(f"{tag} is not the tag of a field")
    return tag, after


def _content(view: memoryview, position: int, end: int, tag: int, depth: int) -> Span:
    """Span of the content of the field whose tag ends at `position`."""
    start = position
    wire_type = tag & 7
    if wire_type == _BYTES:
        length, start = _read_varint(view, position, end)
        position = start + length
    elif wire_type == _VARINT:
        _, position = _read_varint(view, position, end)
    elif wire_type == _FIXED64:
        position += 8
    elif wire_type == _FIXED32:
        position += 4
    elif wire_type == _START_GROUP and depth < _MAX_GROUP_DEPTH:
        while True:
            inner, position = _read_tag(view, position, end)
            if inner == tag + 1:  # the end of the group of that number
                break
            _, position = _content(view, position, end, inner, depth + 1)
    else:
        raise ExampleError(f"field {tag >> 3} has wire type {wire_type}, which is not allowed here")
    if position > end:
        raise ExampleError(f"field {tag >> 3} reaches past the end of its message")
    return start, position


def _messages(view: memoryview, message: Span, number: int) -> list[Span]:
    """Spans of the message's length-delimited fields of that number; others are skipped."""
    return [
        (start, end)
        for found, wire_type, start, end in _fields(view, *message)
        if found == number and wire_type == _BYTES
    ]


def _short_entry(view: memoryview, start: int, end: int) -> tuple[bytes, int, list[Span]] | None:
    """As `_entry_of`, several times faster, for entries below 128 bytes as they are encoded here.

    Such an entry is: 0a, length, name, 12, length, kind's tag, length, 0a, length, value.
    """
    if end - start >= 0x80:
        return None
    entry = bytes(view[start:end])
    try:
        feature = 2 + entry[1]
        tags = entry[0], entry[feature], entry[feature + 4]
        kind, wire_type = divmod(entry[feature + 2], 8)
        lengths = entry[feature + 1], entry[feature + 3], entry[feature + 5]
    except IndexError:
        return None
    rest = len(entry) - feature - 2
    if wire_type != _BYTES or kind not in (_BYTES_LIST, _INT64_LIST):
        return None
    if tags != (0x0A, 0x12, 0x0A) or lengths != (rest, rest - 2, rest - 4):
        return None
    return entry[2:feature], kind, [(start + feature + 6, end)]


def _entry_of(view: memoryview, start: int, end: int) -> tuple[bytes, int, list[Span]]:
    """Name, kind (field of Feature) and values of one entry of the map Features.feature.

    Each piece of a packed list is one value.
    """
    name = b""
    kind = 0
    values: list[Span] = []
    for number, wire_type, *content in _fields(view, start, end):
        if wire_type != _BYTES:
            continue
        if number == 1:
            name = bytes(view[slice(*content)])
        elif number == 2:  # a message that comes again is merged
            for found, list_type, *items in _fields(view, *content):
                if list_type != _BYTES or found not in _KINDS:
                    continue
                if found != kind:  # the last kind of a oneof wins
                    kind, values = found, []
                values += [
                    (first, last)
                    for field, value_type, first, last in _fields(view, *items)
                    if field == 1 and value_type in _VALUE_TYPES[kind]
                ]
    return name, kind, values


def _values(features: Features, name: bytes, kind: int) -> list[Span]:
    """Values of a feature, which must be of that kind."""
    if name not in features:
        raise ExampleError(f"the feature {name.decode()} is missing")
    found, values = features[name]
    if found != kind:
        raise ExampleError(
            f"the feature {name.decode()} is {_KINDS.get(found, 'empty')}, expected {_KINDS[kind]}"
        )
    return values


def _single_bytes(view: memoryview, features: Features, name: bytes) -> memoryview:
    values = _values(features, name, _BYTES_LIST)
    if len(values) != 1:
        raise ExampleError(f"the feature {name.decode()} has {len(values)} values, expected 1")
    start, end = values[0]
    return view[start:end]


def _text(view: memoryview, features: Features, name: bytes) -> str:
    try:
        return str(_single_bytes(view, features, name), "utf-8")
    except UnicodeDecodeError as error:
        raise ExampleError(f"the feature {name.decode()} is not UTF-8: {error}") from None


def _integers(view: memoryview, features: Features, name: bytes) -> list[int]:
    """The integers of a short list."""
    values = []
    for position, end in _values(features, name, _INT64_LIST):
        while position < end:
            value, position = _read_varint(view, position, end)
            values.append(value - (value >> 63 << 64))
    return values


def _integer_array(view: memoryview, features: Features, name: bytes) -> NDArray[np.int64]:
    """[n] int64, the integers of a list of any length."""
    spans = _values(features, name, _INT64_LIST)
    if len(spans) != 1 or spans[0][1] - spans[0][0] > 16:
        pieces = [_unpack_varints(view[start:end]) for start, end in spans]
        return np.concatenate([np.empty(0, np.int64), *pieces])
    return np.array(_integers(view, features, name), np.int64)


def _unpack_varints(packed: memoryview) -> NDArray[np.int64]:
    """[n] int64 of varints end to end."""
    encoded = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(encoded < 0x80)
    if not len(encoded):
        return np.empty(0, np.int64)
    if not len(ends) or ends[-1] != len(encoded) - 1:
        raise ExampleError("a message ends inside a varint")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ExampleError("a varint is longer than 10 bytes")
    places = np.arange(len(encoded)) - np.repeat(starts, lengths)
    groups = (encoded & 0x7F).astype(np.uint64) << (7 * places).astype(np.uint64)
    return np.add.reduceat(groups, starts).view(np.int64)
