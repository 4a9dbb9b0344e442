from dataclasses import replace

import numpy as np
import pytest

from activation_dataset.example import ExampleError, decode_example, encode_prefix, encode_suffix
from activation_dataset.format import Sample

# A protobuf encoder independent of the package, for lengths below 128.


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


@pytest.mark.parametrize("truncated", [0, 5])
def test_the_bytes_are_those_of_the_specification(truncated: int):
    """Only a truncated prompt has the feature truncated_tokens."""
    suffix = encode_suffix(replace(SAMPLE, truncated_tokens=truncated), (1,))
    data = encode_prefix(4, len(suffix)) + b"\1\2\3\4" + suffix
    more = {"truncated_tokens": entry(b"truncated_tokens", packed(5))} if truncated else {}
    assert data == message(ENTRIES | more)
    assert decode_example(data).sample.truncated_tokens == truncated


@pytest.mark.parametrize(
    "entries",
    [
        {"truncated_tokens": entry(b"truncated_tokens", packed(0))},
        {"truncated_tokens": 2 * entry(b"truncated_tokens", packed(5))},
        {"task_id": b""},
        {"more": entry(b"zzz", packed(1))},
        {"task_id": entry(b"task_id", byte_list(b"a", b"b"))},
        {"shape": entry(b"shape", packed(1, 2, 3))},
        {"num_tokens": entry(b"num_tokens", packed(*[0xFF] * 9, 1))},
        {"token_ids": entry(b"token_ids", packed(*[0xFF] * 4, 0x7F))},
        {"token_ids": entry(b"token_ids", packed(0x81, 0))},
        {"token_ids": entry(b"token_ids", delimited(3, b"\x08\x07"))},
        {"token_ids": entry(b"token_ids", packed(7) + packed(8))},
    ],
)
def test_other_encodings_are_refused(entries):
    """The decoder also rejects valid protobuf, such as another order or unpacked lists."""
    with pytest.raises(ExampleError, match=r"not a record of this|shape has"):
        decode_example(message(ENTRIES | entries))


def test_a_negative_token_id_is_refused():
    with pytest.raises(ValueError, match="sample 's' has a negative value in token_ids"):
        encode_suffix(Sample("s", "t", np.array([3, -1], np.int32), 2), (1,))
