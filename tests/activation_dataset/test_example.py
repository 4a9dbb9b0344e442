import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from activation_dataset.example import (
    ExampleError,
    decode_example,
    encode_prefix,
    encode_suffix,
)
from activation_dataset.format import Sample

# Hand-made protobuf, independent of the encoder: everything below 128 bytes.


def delimited(number, content):
    return bytes([number << 3 | 2, len(content)]) + content


def entry(name, feature):
    return delimited(1, delimited(1, name) + delimited(2, feature))


def byte_list(*values):
    return delimited(1, b"".join(delimited(1, value) for value in values))


def packed(*values):
    return delimited(3, delimited(1, bytes(values)))


ENTRIES = {
    "activation": entry(b"activation", byte_list(b"\1\2\3\4")),
    "num_tokens": entry(b"num_tokens", packed(3)),
    "sample_id": entry(b"sample_id", byte_list(b"s")),
    "shape": entry(b"shape", packed(1)),
    "task_id": entry(b"task_id", byte_list(b"t")),
    "token_ids": entry(b"token_ids", packed(7, 8, 9)),
}
SAMPLE = Sample("s", "t", np.array([7, 8, 9], np.int32), 3)


def message(entries):
    content = b"".join(entries.values())
    groups = [len(content) & 0x7F | 0x80, len(content) >> 7]
    return b"\x0a" + bytes(groups if len(content) >= 0x80 else [len(content)]) + content


def replaced(**entries):
    return message(ENTRIES | entries)


samples = st.builds(
    Sample,
    sample_id=st.text(max_size=200),
    task_id=st.text(max_size=20),
    token_ids=hnp.arrays(
        np.int32,
        st.integers(0, 30),
        elements=st.one_of(st.integers(0, 200), st.integers(0, 2**31 - 1)),
    ),
    num_tokens=st.integers(0, 2**40),
)


def test_the_bytes_are_those_of_the_specification():
    suffix = encode_suffix(SAMPLE, (1,))
    assert encode_prefix(4, len(suffix)) + b"\1\2\3\4" + suffix == message(ENTRIES)


@given(samples, st.binary(max_size=300), st.lists(st.integers(0, 2**31), min_size=1, max_size=2))
def test_what_was_encoded_is_decoded(sample, payload, shape):
    suffix = encode_suffix(sample, shape)
    decoded = decode_example(encode_prefix(len(payload), len(suffix)) + payload + suffix)
    assert decoded.sample == sample
    assert decoded.shape == tuple(shape)
    assert decoded.activation == payload


def test_the_activation_is_not_copied():
    data = bytearray(message(ENTRIES))
    decoded = decode_example(memoryview(data))
    data[data.index(b"\1\2\3\4")] = 99
    assert decoded.activation[0] == 99


@given(st.permutations(list(ENTRIES)))
def test_features_may_come_in_any_order(names):
    assert decode_example(message({name: ENTRIES[name] for name in names})).sample == SAMPLE


UNPACKED = b"\x08\x07\x08\x08\x08\x09"


@pytest.mark.parametrize(
    "entries",
    [
        {"token_ids": entry(b"token_ids", delimited(3, UNPACKED))},
        {"token_ids": entry(b"token_ids", delimited(3, b"\x08\x07\x0a\x02\x08\x09"))},
        {"token_ids": entry(b"token_ids", packed(7) + packed(8, 9))},
        {"token_ids": entry(b"token_ids", byte_list(b"x") + packed(7, 8, 9))},
        {"token_ids": ENTRIES["task_id"] + entry(b"token_ids", packed(5)) + ENTRIES["token_ids"]},
        {"token_ids": delimited(1, delimited(2, packed(7, 8, 9)) + delimited(1, b"token_ids"))},
        {"unknown feature": entry(b"zzz", packed(1))},
        {"float feature": entry(b"floats", delimited(2, delimited(1, bytes(8))))},
        {"unknown varint": b"\x98\x06\x01"},
        {"unknown fixed64": b"\x99\x06" + bytes(8)},
        {"unknown fixed32": b"\x9d\x06" + bytes(4)},
        {"unknown bytes": b"\x9a\x06\x01x"},
        {"unknown group": b"\x9b\x06\x08\x01\x13\x14\x9c\x06"},
        {"field 1 of another type": b"\x08\x05"},
    ],
    ids=lambda entries: next(iter(entries)),
)
def test_what_protobuf_allows_is_accepted(entries):
    decoded = decode_example(replaced(**entries))
    assert decoded.sample == SAMPLE
    assert bytes(decoded.activation) == b"\1\2\3\4"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"task_id": b""}, "the feature task_id is missing"),
        ({"task_id": entry(b"task_id", packed(1))}, "task_id is an int64 list, expected a bytes"),
        ({"task_id": entry(b"task_id", b"")}, "task_id is empty, expected a bytes list"),
        ({"task_id": entry(b"task_id", byte_list(b"a", b"b"))}, "task_id has 2 values, expected 1"),
        ({"task_id": entry(b"task_id", byte_list(b"\xff"))}, "task_id is not UTF-8"),
        ({"shape": entry(b"shape", delimited(2, b""))}, "shape is a float list, expected an int64"),
        ({"shape": entry(b"shape", packed())}, r"shape is \[\], expected one or two"),
        ({"shape": entry(b"shape", packed(1, 2, 3))}, r"shape is \[1, 2, 3\], expected one or two"),
        ({"num_tokens": entry(b"num_tokens", packed(1, 2))}, r"num_tokens is \[1, 2\]"),
        (
            {"num_tokens": entry(b"num_tokens", packed(*[0xFF] * 9, 1))},
            r"num_tokens is \[-1\], expected one integer of at least 0",
        ),
        (
            {"token_ids": entry(b"token_ids", packed(*[0xFF] * 9, 1))},
            "token_ids has a value outside 0..2147483647",
        ),
        ({"token_ids": entry(b"token_ids", packed(0x80))}, "a message ends inside a varint"),
        ({"token_ids": entry(b"token_ids", packed(*[0x80] * 18))}, "ends inside a varint"),
        ({"token_ids": entry(b"token_ids", packed(*[0x80] * 11, 0))}, "longer than 10 bytes"),
        ({"token_ids": entry(b"token_ids", packed(*[0x80] * 17, 0))}, "longer than 10 bytes"),
        ({"past the end": b"\x0a\x05a"}, "field 1 reaches past the end of its message"),
        ({"no tag": b"\x02\x01"}, "2 is not the tag of a field"),
        ({"end without start": b"\x0c"}, "field 1 has wire type 4"),
        ({"wire type 6": b"\x0e"}, "field 1 has wire type 6"),
        ({"deep groups": b"\x0b" * 150}, "field 1 has wire type 3"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said(entries, message):
    with pytest.raises(ExampleError, match=message):
        decode_example(replaced(**entries))


@settings(max_examples=500)
@given(st.data())
def test_nonsense_is_an_error_and_nothing_else(data):
    content = bytearray(message(ENTRIES))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ExampleError):
        decode_example(bytes(content))


@given(st.binary(max_size=100))
def test_random_bytes_are_no_record(content):
    with pytest.raises(ExampleError):
        decode_example(content)


def test_a_negative_token_id_is_refused():
    with pytest.raises(ValueError, match=r"sample 's' has a negative value in token_ids"):
        encode_suffix(Sample("s", "t", np.array([3, -1], np.int32), 2), (1,))


def test_token_ids_of_another_dtype_are_refused():
    with pytest.raises(TypeError, match=r"sample 's': token_ids is int64 .* expected int32"):
        Sample("s", "t", np.array([3]), 1)
