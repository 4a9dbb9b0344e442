"""Encoding and strict decoding of a record's data, a tf.train.Example.

Neither TensorFlow nor protobuf is needed. tensorflow/core/example/{example,feature}.proto defines
the messages. The bytes are equal to the result of TensorFlow's
SerializeToString(deterministic=True), which sorts the features by name:

    activation  bytes, raw little-endian elements      shape      int64 list
    num_tokens  int64                                  task_id    bytes, UTF-8
    sample_id   bytes, UTF-8                           token_ids  int64 list

Some records have additional features:

    offset         int64, for a window that is not the first of its document
    positions      int64 list, positions of the chosen tokens, unless all tokens are chosen
    prepended_bos  int64, 1 if the first token is not in the document
    roles          list of bytes, UTF-8: role of each message, for the prompt of a chat
    truncated_tokens  int64, for a truncated prompt
    turns          int64 list: for each token, the number of its message from 1, or 0 if it is
                   between messages, for the prompt of a chat

The decoder accepts only these bytes: it encodes the decoded values again and compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from activation_dataset.format import Sample

ACTIVATION = b"activation"

# Tags of length-delimited fields.
_FIELD_1, _FIELD_2, _FIELD_3 = b"\x0a", b"\x12", b"\x1a"
_BYTES_LIST, _INT64_LIST = _FIELD_1, _FIELD_3  # Fields of Feature.

_MAX_SHIFT = 56  # Shift of the last group of a varint.
# Up to this length, a Python loop is faster than numpy.
_SHORT_LIST = 16


class ExampleError(ValueError):
    """Error for data that is not a record of this format. The message names the wrong part."""


@dataclass(frozen=True, eq=False)
class DecodedExample:
    """Content of one record.

    Attributes:
        sample: the sample.
        shape: shape of the vectors.
        activation: view of the payload's bytes in the data.
        turns: [num_tokens] int16, as in `Prompt`, or None.
        roles: roles of the messages, as in `Prompt`.
    """

    sample: Sample
    shape: tuple[int, ...]
    activation: memoryview
    turns: NDArray[np.int16] | None = None
    roles: tuple[str, ...] = ()


def encode_prefix(payload_bytes: int, suffix_bytes: int, payload: bytes = ACTIVATION) -> bytes:
    """Encode everything before the payload, whose feature sorts first.

    Args:
        payload_bytes: size of the payload.
        suffix_bytes: size of the result of `encode_suffix`.
        payload: name of the payload's feature.
    """
    lengths = []
    length = payload_bytes
    # From the innermost length: BytesList.value, Feature.bytes_list, the value of the map entry.
    for _ in range(3):
        lengths.append(_varint(length))
        length += 1 + len(lengths[-1])
    value, bytes_list, feature = lengths
    entry = _field(_FIELD_1, payload) + _FIELD_2 + feature
    entry += _BYTES_LIST + bytes_list + _FIELD_1 + value
    entry_bytes = len(entry) + payload_bytes
    opening = _FIELD_1 + _varint(entry_bytes)
    return _FIELD_1 + _varint(len(opening) + entry_bytes + suffix_bytes) + opening + entry


def encode_suffix(
    sample: Sample,
    shape: Sequence[int],
    turns: NDArray[np.int16] | None = None,
    roles: Sequence[str] = (),
) -> bytes:
    """Encode the features after the payload.

    Args:
        sample: the sample.
        shape: shape of the vectors.
        turns: [num_tokens] int16, as in `Prompt`, or None.
        roles: roles of the messages, as in `Prompt`.

    Raises:
        ValueError: if a token id is negative.
    """
    if len(sample.token_ids) and sample.token_ids.min() < 0:
        raise ValueError(f"sample {sample.sample_id!r} has a negative value in token_ids")
    entries = [_entry(b"num_tokens", _int64_feature(_varint(sample.num_tokens)))]
    if sample.offset:
        entries.append(_entry(b"offset", _int64_feature(_varint(sample.offset))))
    if sample.positions is not None:
        entries.append(_entry(b"positions", _int64_feature(_varint_array(sample.positions))))
    if sample.prepended_bos:
        entries.append(_entry(b"prepended_bos", _int64_feature(_varint(1))))
    if roles:
        entries.append(_entry(b"roles", _texts_feature(roles)))
    entries += [
        _entry(b"sample_id", _texts_feature([sample.sample_id])),
        _entry(b"shape", _int64_feature(b"".join(map(_varint, shape)))),
        _entry(b"task_id", _texts_feature([sample.task_id])),
        _entry(b"token_ids", _int64_feature(_varint_array(sample.token_ids))),
    ]
    if sample.truncated_tokens:
        truncated = _int64_feature(_varint(sample.truncated_tokens))
        entries.append(_entry(b"truncated_tokens", truncated))
    if turns is not None:
        numbers = _varint_array(turns.astype(np.int32) + 1)
        entries.append(_entry(b"turns", _int64_feature(numbers)))
    return b"".join(entries)


def decode_example(data: bytes | memoryview, payload: bytes = ACTIVATION) -> DecodedExample:
    """Decode a record's data. The payload is a view; all other values are copies.

    Raises:
        ExampleError: if the data differs from what the encoder writes.
    """
    view = memoryview(data)
    try:
        values = _values(view)
        decoded = _decoded(values, payload)
        suffix = encode_suffix(decoded.sample, decoded.shape, decoded.turns, decoded.roles)
    except IndexError:
        raise ExampleError("not a record of this format: it ends inside a field") from None
    except KeyError as error:
        raise ExampleError(f"not a record of this format: it has no {error}") from None
    except ValueError as error:
        raise ExampleError(f"not a record of this format: {error}") from None
    prefix = encode_prefix(len(decoded.activation), len(suffix), payload)
    if len(decoded.shape) not in (1, 2):
        raise ExampleError(f"shape has {len(decoded.shape)} values, expected 1 or 2")
    if (
        bytes(view[: len(prefix)]) != prefix
        or view[len(prefix) + len(decoded.activation) :].tobytes() != suffix
    ):
        raise ExampleError("not a record of this format: its encoding differs")
    return decoded


def _decoded(values: Mapping[bytes, memoryview], payload: bytes) -> DecodedExample:
    """Return the content of a record, given the encoded values of each feature."""

    def number(name: bytes) -> int:
        return _varint_at(_first(values[name]), 0)[0] if name in values else 0

    sample = Sample(
        sample_id=str(_first(values[b"sample_id"]), "utf-8"),
        task_id=str(_first(values[b"task_id"]), "utf-8"),
        token_ids=_integer_array(_first(values[b"token_ids"])),
        num_tokens=_varint_at(_first(values[b"num_tokens"]), 0)[0],
        truncated_tokens=number(b"truncated_tokens"),
        positions=_integer_array(_first(values[b"positions"])) if b"positions" in values else None,
        offset=number(b"offset"),
        prepended_bos=number(b"prepended_bos") == 1,
    )
    turns = None
    if b"turns" in values:
        turns = (_integer_array(_first(values[b"turns"])) - 1).astype(np.int16)
    roles = _texts(values[b"roles"]) if b"roles" in values else ()
    shape = tuple(_integers(_first(values[b"shape"])))
    return DecodedExample(sample, shape, _first(values[payload]), turns, roles)


# Encoding


def _entry(name: bytes, feature: bytes) -> bytes:
    """Encode one entry of the map Features.feature."""
    return _field(_FIELD_1, _field(_FIELD_1, name) + _field(_FIELD_2, feature))


def _texts_feature(values: Sequence[str]) -> bytes:
    texts = (_field(_FIELD_1, value.encode("utf-8")) for value in values)
    return _field(_BYTES_LIST, b"".join(texts))


def _int64_feature(packed: bytes) -> bytes:
    return _field(_INT64_LIST, _field(_FIELD_1, packed) if packed else b"")


def _field(tag: bytes, content: bytes) -> bytes:
    """Encode a length-delimited field."""
    return tag + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Encode an integer in base 128, least significant group first."""
    if value < 0x80:
        return bytes((value,))
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _varint_array(values: NDArray[np.int32]) -> bytes:
    """Encode [n] integers, each in 0..2^31 - 1, as varints."""
    if len(values) <= _SHORT_LIST:
        return b"".join(map(_varint, values.tolist()))
    groups = values.astype(np.uint32)[:, None] >> np.arange(0, 35, 7, dtype=np.uint32)
    used = groups != 0
    used[:, 0] = True
    encoded = (groups & 0x7F).astype(np.uint8)
    encoded[:, :-1][used[:, 1:]] |= 0x80
    return bytes(encoded[used])


# Decoding. `decode_example` checks names, tags and lengths by encoding the result again.


def _values(view: memoryview) -> dict[bytes, memoryview]:
    """Return the encoded values of each feature, fields of byte strings or packed integers."""
    values: dict[bytes, memoryview] = {}
    position, last = _content(view, 0)
    while position < last:
        entry, end = _content(view, position)
        name, name_end = _content(view, entry)
        feature, _ = _content(view, name_end)
        start, _ = _content(view, feature)
        values[bytes(view[name:name_end])] = view[start:end]
        position = end
    return values


def _first(values: memoryview) -> memoryview:
    """Return the first byte string of a list, or its packed integers; empty if there is none."""
    if not len(values):
        return values
    start, end = _content(values, 0)
    return values[start:end]


def _texts(values: memoryview) -> tuple[str, ...]:
    """Decode all byte strings of a list."""
    texts, position = [], 0
    while position < len(values):
        start, position = _content(values, position)
        texts.append(str(values[start:position], "utf-8"))
    return tuple(texts)


def _content(view: memoryview, position: int) -> tuple[int, int]:
    """Return the start and end of the content of the length-delimited field at a position."""
    length, start = _varint_at(view, position + 1)
    return start, start + length


def _varint_at(view: memoryview, position: int) -> tuple[int, int]:
    """Return a varint and the position after it.

    Raises:
        IndexError: if the view ends before the varint.
    """
    byte = view[position]
    if byte < 0x80:
        return byte, position + 1
    value = shift = 0
    while byte >= 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        position += 1
        if shift > _MAX_SHIFT:
            raise ValueError("a varint is too long")
        byte = view[position]
    return value | byte << shift, position + 1


def _integers(packed: memoryview) -> list[int]:
    """Decode the integers of a short list."""
    values = []
    position = 0
    while position < len(packed):
        value, position = _varint_at(packed, position)
        values.append(value)
    return values


def _integer_array(packed: memoryview) -> NDArray[np.int32]:
    """Decode the integers of a list of any length to [n] int32."""
    if len(packed) <= _SHORT_LIST:
        return np.array(_integers(packed), np.int64).astype(np.int32)
    encoded = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(encoded < 0x80) + 1
    starts = np.concatenate([[0], ends[:-1]])
    places = np.arange(len(encoded)) - np.repeat(starts, np.diff(ends, prepend=0))
    groups = (encoded & 0x7F).astype(np.int64) << np.minimum(7 * places, _MAX_SHIFT)
    return np.add.reduceat(groups, starts).astype(np.int32)
