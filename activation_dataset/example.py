"""Encoding and strict decoding of a record's data, a tf.train.Example.

Needs neither TensorFlow nor protobuf. The messages are those of
tensorflow/core/example/{example,feature}.proto. The bytes equal those of TensorFlow's
SerializeToString(deterministic=True), which sorts the features by name:

    activation  bytes, raw little-endian elements      shape      int64 list
    num_tokens  int64                                  task_id    bytes, UTF-8
    sample_id   bytes, UTF-8                           token_ids  int64 list

The decoder accepts these bytes only: these six features in this order, packed lists, and every
varint in its shortest form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import Sample

ACTIVATION = b"activation"

# Tags of length-delimited fields.
_FIELD_1, _FIELD_2, _FIELD_3 = b"\x0a", b"\x12", b"\x1a"
_BYTES_LIST, _INT64_LIST = _FIELD_1, _FIELD_3  # fields of Feature

_MAX_VARINT_BYTES = 9  # 63 bits, since no integer of a record is negative
_MAX_TOKEN_ID = 2**31 - 1
# Up to this size a loop in Python is faster than numpy.
_SHORT_LIST_BYTES = 16


class ExampleError(ValueError):
    """Data that is not a record of this format. The message says which part is wrong."""


@dataclass(frozen=True, eq=False)
class DecodedExample:
    """Content of one record.

    Attributes:
        sample: sample_id, task_id, token_ids and num_tokens.
        shape: (hidden,) or (num_tokens, hidden).
        activation: raw bytes of the payload, a view of the decoded data.
    """

    sample: Sample
    shape: tuple[int, ...]
    activation: memoryview


def encode_prefix(payload_bytes: int, suffix_bytes: int, payload: bytes = ACTIVATION) -> bytes:
    """Encode everything before the bytes of the payload, whose feature sorts first.

    Args:
        payload_bytes: size of the payload.
        suffix_bytes: size of the result of `encode_suffix`.
        payload: name of the payload's feature.
    """
    lengths = []
    length = payload_bytes
    # From the inside: BytesList.value, Feature.bytes_list, the map entry's value.
    for _ in range(3):
        lengths.append(_varint(length))
        length += 1 + len(lengths[-1])
    value, bytes_list, feature = lengths
    entry = _field(_FIELD_1, payload) + _FIELD_2 + feature
    entry += _BYTES_LIST + bytes_list + _FIELD_1 + value
    entry_bytes = len(entry) + payload_bytes
    opening = _FIELD_1 + _varint(entry_bytes)
    return _FIELD_1 + _varint(len(opening) + entry_bytes + suffix_bytes) + opening + entry


def encode_suffix(sample: Sample, shape: Sequence[int]) -> bytes:
    """Encode everything after the bytes of the payload: the other features.

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
            _entry(b"num_tokens", _int64_feature(_varint(sample.num_tokens))),
            _entry(b"sample_id", _bytes_feature(sample.sample_id.encode("utf-8"))),
            _entry(b"shape", _int64_feature(b"".join(map(_varint, shape)))),
            _entry(b"task_id", _bytes_feature(sample.task_id.encode("utf-8"))),
            _entry(b"token_ids", _int64_feature(_varint_array(sample.token_ids))),
        )
    )


def decode_example(data: bytes | memoryview, payload: bytes = ACTIVATION) -> DecodedExample:
    """Decode a record's data. Copies everything except the payload.

    Args:
        data: the record's data.
        payload: name of the payload's feature.

    Raises:
        ExampleError: the data is not exactly what the encoder writes.
    """
    reader = _Reader(memoryview(data))
    activation = reader.feature(payload, _BYTES_LIST)
    num_tokens = _integers(reader.feature(b"num_tokens", _INT64_LIST))
    sample_id = reader.text(b"sample_id")
    shape = _integers(reader.feature(b"shape", _INT64_LIST))
    task_id = reader.text(b"task_id")
    token_ids = _integer_array(reader.feature(b"token_ids", _INT64_LIST))
    reader.done()
    if len(num_tokens) != 1:
        raise ExampleError(f"num_tokens has {len(num_tokens)} values, expected 1")
    if len(shape) not in (1, 2):
        raise ExampleError(f"shape has {len(shape)} values, expected 1 or 2")
    if len(token_ids) and token_ids.max() > _MAX_TOKEN_ID:
        raise ExampleError(f"token_ids has a value outside 0..{_MAX_TOKEN_ID}")
    sample = Sample(sample_id, task_id, token_ids.astype(np.int32), num_tokens[0])
    return DecodedExample(sample, tuple(shape), activation)


# Encoding


def _entry(name: bytes, feature: bytes) -> bytes:
    """One entry of the map Features.feature."""
    return _field(_FIELD_1, _field(_FIELD_1, name) + _field(_FIELD_2, feature))


def _bytes_feature(value: bytes) -> bytes:
    return _field(_BYTES_LIST, _field(_FIELD_1, value))


def _int64_feature(packed: bytes) -> bytes:
    return _field(_INT64_LIST, _field(_FIELD_1, packed) if packed else b"")


def _field(tag: bytes, content: bytes) -> bytes:
    """A length-delimited field."""
    return tag + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Base 128, least significant group first."""
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _varint_array(values: NDArray[np.int32]) -> bytes:
    """Varints of [n] integers, each in 0..2^31 - 1."""
    groups = values.astype(np.uint32)[:, None] >> np.arange(0, 35, 7, dtype=np.uint32)
    used = groups != 0
    used[:, 0] = True
    encoded = (groups & 0x7F).astype(np.uint8)
    encoded[:, :-1][used[:, 1:]] |= 0x80
    return bytes(encoded[used])


# Decoding


class _Reader:
    """Reads the features of an Example one after the other."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0
        self._enter(_FIELD_1, until=len(view))

    def feature(self, name: bytes, kind: bytes) -> memoryview:
        """The value of the next feature: one byte string, or a packed list of integers."""
        entry_end = self._enter(_FIELD_1)
        name_end = self._enter(_FIELD_1)
        found = bytes(self._view[self._position : name_end])
        if found != name:
            raise ExampleError(f"the feature {found!r} is where {name.decode()} is expected")
        self._position = name_end
        self._enter(_FIELD_2, until=entry_end)
        self._enter(kind, until=entry_end)
        if kind == _BYTES_LIST or self._position < entry_end:
            self._enter(_FIELD_1, until=entry_end)
        value = self._view[self._position : entry_end]
        self._position = entry_end
        return value

    def text(self, name: bytes) -> str:
        """The next feature, a string."""
        try:
            return str(self.feature(name, _BYTES_LIST), "utf-8")
        except UnicodeDecodeError as error:
            raise ExampleError(f"the feature {name.decode()} is not UTF-8: {error}") from None

    def done(self) -> None:
        """Check that no feature is left."""
        if self._position != len(self._view):
            raise ExampleError(f"{len(self._view) - self._position} bytes follow token_ids")

    def _enter(self, tag: bytes, until: int | None = None) -> int:
        """Read the tag and length of a field, and return the end of its content.

        Args:
            tag: the expected tag, one byte.
            until: the expected end; None for any end within the data.
        """
        start = self._position
        if self._view[start : start + 1] != tag:
            raise ExampleError(f"byte {start} does not start the field that belongs there")
        length, self._position = _varint_at(self._view, start + 1)
        end = self._position + length
        if end > len(self._view) or (until is not None and end != until):
            raise ExampleError(f"the field at byte {start} has the wrong length {length}")
        return end


def _varint_at(view: memoryview, start: int) -> tuple[int, int]:
    """A varint and the position after it."""
    if start < len(view) and view[start] < 0x80:
        return view[start], start + 1
    value = shift = 0
    for position in range(start, min(start + _MAX_VARINT_BYTES, len(view))):
        byte = view[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if not byte:
                raise ExampleError(f"the varint at byte {start} is not in its shortest form")
            return value, position + 1
        shift += 7
    raise ExampleError(f"the varint at byte {start} does not end")


def _integers(packed: memoryview) -> list[int]:
    """The integers of a short list of varints."""
    values = []
    position = 0
    while position < len(packed):
        value, position = _varint_at(packed, position)
        values.append(value)
    return values


def _integer_array(packed: memoryview) -> NDArray[np.int64]:
    """The integers of a list of varints of any length, [n] int64."""
    if len(packed) <= _SHORT_LIST_BYTES:
        return np.array(_integers(packed), np.int64)
    encoded = np.frombuffer(packed, np.uint8)
    last = encoded < 0x80
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends + 1])[: len(ends)]
    lengths = ends - starts + 1
    if not last[-1] or lengths.max() > _MAX_VARINT_BYTES:
        raise ExampleError("token_ids has a varint that does not end")
    if (encoded[ends[lengths > 1]] == 0).any():
        raise ExampleError("token_ids has a varint that is not in its shortest form")
    places = np.arange(len(encoded)) - np.repeat(starts, lengths)
    groups = (encoded & 0x7F).astype(np.uint64) << (7 * places).astype(np.uint64)
    return np.add.reduceat(groups, starts).view(np.int64)
