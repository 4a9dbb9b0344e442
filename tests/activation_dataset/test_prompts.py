import io
from dataclasses import replace

import numpy as np
import pytest

from activation_dataset.checksum import crc32c
from activation_dataset.example import ExampleError, encode_prefix, encode_suffix
from activation_dataset.format import Sample
from activation_dataset.prompts import (
    NO_CELL,
    UNKNOWN_CELL,
    decode_prompt,
    encode_prompt,
    read_prompts,
)
from activation_dataset.tfrecord import CorruptRecordError, frame_footer, frame_header
from tests.activation_dataset.synthetic import make_prompts


def record(tokens: int, cells: bytes, shape: tuple[int, ...], num_tokens: int) -> bytes:
    suffix = encode_suffix(Sample("s", "t", np.zeros(tokens, np.int32), num_tokens), shape)
    return encode_prefix(len(cells), len(suffix), b"cells") + cells + suffix


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (record(1, b"\xff" * 8, (1, 4), 2), "token_ids has 1 values, num_tokens says 2"),
        (record(1, b"\xff" * 8, (4, 1), 1), r"shape is \(4, 1\), expected \(1, 4\)"),
        (record(1, b"\xff" * 6, (1, 4), 1), "cells has 6 bytes, expected 8"),
        (record(1, b"\0\0\2\0\0\0\0\0", (1, 4), 1), "neither a cell nor -1 in all four columns"),
        (record(1, b"\0\0\1\0\xff\xff\0\0", (1, 4), 1), "neither a cell nor -1 in all four"),
        (record(2, b"\xfe\xff" * 4 + b"\xff" * 8, (2, 4), 2), "neither a cell nor -1 in all four"),
        (encode_prompt(make_prompts([3])[0]) + b"\x98\x06\x01", "its encoding differs"),
    ],
)
def test_a_record_that_is_not_a_prompt_is_refused(data: bytes, message: str):
    with pytest.raises(ExampleError, match=message):
        decode_prompt(data)
    framed = frame_header(len(data)) + data + frame_footer(crc32c(data))
    with pytest.raises(CorruptRecordError, match=f"record 0 at byte 0: .*{message}"):
        list(read_prompts(io.BytesIO(framed), "file"))


@pytest.mark.parametrize("value", [NO_CELL, UNKNOWN_CELL])
def test_a_prompt_says_whether_its_cells_are_known(value: int):
    prompt = replace(make_prompts([3])[0], cells=np.full((3, 4), value, np.int16))
    again = decode_prompt(encode_prompt(prompt))
    assert again.cells.tolist() == prompt.cells.tolist()
    assert again.cells_known == (value != UNKNOWN_CELL)
