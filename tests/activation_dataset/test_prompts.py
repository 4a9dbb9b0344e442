import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from activation_dataset.checksum import crc32c, to_text
from activation_dataset.example import ExampleError, encode_prefix, encode_suffix
from activation_dataset.format import Sample, prompts_file
from activation_dataset.manifest import FileEntry, PromptsManifest, sample_order
from activation_dataset.prompts import (
    Prompt,
    decode_prompt,
    encode_prompt,
    read_prompts,
    write_prompts,
)
from activation_dataset.tfrecord import CorruptRecordError, frame_footer, frame_header
from tests.activation_dataset.synthetic import make_prompts


@st.composite
def prompts(draw) -> Prompt:
    length = draw(st.integers(0, 20))
    cells = draw(arrays.arrays(np.int16, (length, 4), elements=st.integers(0, 2**15 - 1)))
    cells[:, 1] %= 2
    cells[:, 0] -= draw(arrays.arrays(np.int16, length, elements=st.integers(0, 1)))
    cells[draw(arrays.arrays(bool, length))] = -1
    tokens = draw(arrays.arrays(np.int32, length, elements=st.integers(0, 2**31 - 1)))
    return Prompt(draw(st.text(max_size=9)), draw(st.text(max_size=9)), tokens, cells)


@given(st.lists(prompts(), max_size=5))
def test_what_was_written_is_read(given_prompts: list[Prompt]):
    stream = io.BytesIO()
    manifest = write_prompts(stream, given_prompts, 0, 2)
    content = stream.getvalue()
    assert manifest == PromptsManifest(
        shard=0,
        samples=len(given_prompts),
        tokens=sum(prompt.num_tokens for prompt in given_prompts),
        order=sample_order(prompt.sample_id for prompt in given_prompts),
        file=FileEntry(prompts_file(0, 2), len(content), to_text(crc32c(content))),
    )
    read = list(read_prompts(io.BytesIO(content), "file"))
    assert len(read) == len(given_prompts)
    for prompt, other in zip(given_prompts, read, strict=True):
        assert (prompt.sample_id, prompt.task_id) == (other.sample_id, other.task_id)
        assert np.array_equal(prompt.token_ids, other.token_ids)
        assert np.array_equal(prompt.cells, other.cells)


def record(tokens: int, cells: bytes, shape: tuple[int, ...], num_tokens: int) -> bytes:
    suffix = encode_suffix(Sample("s", "t", np.zeros(tokens, np.int32), num_tokens), shape)
    return encode_prefix(len(cells), len(suffix), b"cells") + cells + suffix


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (record(1, b"\xff" * 8, (1, 4), 2), "token_ids has 1 values, num_tokens says 2"),
        (record(1, b"\xff" * 8, (4, 1), 1), r"shape is \(4, 1\), expected \(1, 4\)"),
        (record(1, b"\xff" * 6, (1, 4), 1), "cells has 6 bytes, expected 8"),
        (encode_prompt(make_prompts([3])[0]) + b"\x98\x06\x01", "not encoded as this"),
    ],
)
def test_a_record_that_is_not_a_prompt_is_refused(data: bytes, message: str):
    with pytest.raises(ExampleError, match=message):
        decode_prompt(data)
    framed = frame_header(len(data)) + data + frame_footer(crc32c(data))
    with pytest.raises(CorruptRecordError, match=f"record 0 at byte 0: .*{message}"):
        list(read_prompts(io.BytesIO(framed), "file"))
