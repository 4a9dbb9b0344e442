"""One record's data: a tf.train.Example with exactly the features of an activation record.

Written and read without TensorFlow or protobuf. The messages are those of
tensorflow/core/example/{example,feature}.proto; encoded bytes equal those of TensorFlow's
SerializeToString(deterministic=True), which sorts the features by name:

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
from activation_dataset.protobuf import (
    BYTES,
    FIXED32,
    VARINT,
    Span,
    WireError,
    field,
    fields,
    messages,
    read_varint,
    unpack_varints,
    varint,
    varint_array,
    varints,
)

ACTIVATION = b"activation"

# Tags of length-delimited fields.
_FIELD_1, _FIELD_2, _FIELD_3 = b"\x0a", b"\x12", b"\x1a"
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3  # fields of Feature
_KINDS = {_BYTES_LIST: "a bytes list", _FLOAT_LIST: "a float list", _INT64_LIST: "an int64 list"}
_VALUE_TYPES = {
    _BYTES_LIST: (BYTES,),
    _FLOAT_LIST: (BYTES, FIXED32),
    _INT64_LIST: (BYTES, VARINT),  # packed or not
}

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
        activation: the raw bytes of the payload, a view of the data that was decoded.
    """

    sample: Sample
    shape: tuple[int, ...]
    activation: memoryview


def encode_prefix(payload_bytes: int, suffix_bytes: int, payload: bytes = ACTIVATION) -> bytes:
    """What comes before the payload's bytes: lengths and its name, which sorts first.

    Args:
        payload_bytes: bytes of the payload.
        suffix_bytes: bytes of what `encode_suffix` returns.
        payload: name of its feature.
    """
    lengths = []
    length = payload_bytes
    # From the inside: BytesList.value, Feature.bytes_list, the map entry's value.
    for _ in range(3):
        lengths.append(varint(length))
        length += 1 + len(lengths[-1])
    value, bytes_list, feature = lengths
    entry = field(_FIELD_1, payload) + _FIELD_2 + feature
    entry += _FIELD_1 + bytes_list + _FIELD_1 + value
    entry_bytes = len(entry) + payload_bytes
    opening = _FIELD_1 + varint(entry_bytes)
    return _FIELD_1 + varint(len(opening) + entry_bytes + suffix_bytes) + opening + entry


def encode_suffix(sample: Sample, shape: Sequence[int]) -> bytes:
    """What comes after the payload's bytes: the other features. The same in every layer.

    Args:
        sample: the sample.
        shape: the feature `shape`.

    Raises:
        ValueError: a token id is negative.
    """
    if len(sample.token_ids) and sample.token_ids.min() < 0:
        raise ValueError(f"sample {sample.sample_id!r} has a negative value in token_ids")
    return b"".join(
        (
            _entry(b"num_tokens", _int64_feature(varints((sample.num_tokens,)))),
            _entry(b"sample_id", _bytes_feature(sample.sample_id.encode("utf-8"))),
            _entry(b"shape", _int64_feature(varints(shape))),
            _entry(b"task_id", _bytes_feature(sample.task_id.encode("utf-8"))),
            _entry(b"token_ids", _int64_feature(varint_array(sample.token_ids))),
        )
    )


def decode_example(data: bytes | memoryview, payload: bytes = ACTIVATION) -> DecodedExample:
    """Reads a record's data; copies all but the payload, whose feature has that name.

    Any order of fields and features, packed or unpacked lists, unknown fields and features are
    accepted, as protobuf demands. Missing features and wrong types are not.

    Raises:
        ExampleError: the bytes are not protobuf, or not an activation record.
    """
    try:
        return _decode(memoryview(data), payload)
    except WireError as error:
        raise ExampleError(str(error)) from None


# Encoding


def _entry(name: bytes, feature: bytes) -> bytes:
    """One entry of the map Features.feature."""
    return field(_FIELD_1, field(_FIELD_1, name) + field(_FIELD_2, feature))


def _bytes_feature(value: bytes) -> bytes:
    return field(_FIELD_1, field(_FIELD_1, value))


def _int64_feature(packed: bytes) -> bytes:
    return field(_FIELD_3, field(_FIELD_1, packed) if packed else b"")


# Decoding


def _decode(view: memoryview, payload: bytes) -> DecodedExample:
    features: Features = {}
    for message in messages(view, (0, len(view)), 1):
        for entry in messages(view, message, 1):
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
        _single_bytes(view, features, payload),
    )


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
    if wire_type != BYTES or kind not in (_BYTES_LIST, _INT64_LIST):
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
    for number, wire_type, *content in fields(view, start, end):
        if wire_type != BYTES:
            continue
        if number == 1:
            name = bytes(view[slice(*content)])
        elif number == 2:  # a message that comes again is merged
            for found, list_type, *items in fields(view, *content):
                if list_type != BYTES or found not in _KINDS:
                    continue
                if found != kind:  # the last kind of a oneof wins
                    kind, values = found, []
                values += [
                    (first, last)
                    for item, value_type, first, last in fields(view, *items)
                    if item == 1 and value_type in _VALUE_TYPES[kind]
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
            value, position = read_varint(view, position, end)
            values.append(value - (value >> 63 << 64))
    return values


def _integer_array(view: memoryview, features: Features, name: bytes) -> NDArray[np.int64]:
    """[n] int64, the integers of a list of any length."""
    spans = _values(features, name, _INT64_LIST)
    if len(spans) != 1 or spans[0][1] - spans[0][0] > 16:
        pieces = [unpack_varints(view[start:end]) for start, end in spans]
        return np.concatenate([np.empty(0, np.int64), *pieces])
    return np.array(_integers(view, features, name), np.int64)
