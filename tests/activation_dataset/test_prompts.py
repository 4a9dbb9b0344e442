import io
import re
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from activation_dataset import native
from activation_dataset.checksum import crc32c, to_text
from activation_dataset.example import ExampleError, encode_prefix, encode_suffix
from activation_dataset.format import Sample, prompts_file, shard_file
from activation_dataset.manifest import FileEntry, PromptsManifest
from activation_dataset.prompts import (
    Prompt,
    decode_prompt,
    encode_prompt,
    spans_are_cells,
    write_prompts,
)
from activation_dataset.tfrecord import frame_footer, frame_header, read_records
from activation_dataset.verifying.dataset import verify
from activation_dataset.verifying.layer_file import LayerFileError
from activation_dataset.verifying.prompts import verify_prompts
from tests.activation_dataset.synthetic import make_prompts, text_prompt, write_dataset

FIRST = prompts_file(0, 2)


@st.composite
def prompts(draw) -> Prompt:
    length = draw(st.integers(0, 20))
    cells = draw(arrays.arrays(np.int16, (length, 4), elements=st.integers(0, 2**15 - 1)))
    cells[:, 1] %= 2
    cells[:, 0] -= draw(arrays.arrays(np.int16, length, elements=st.integers(0, 1)))
    cells[draw(arrays.arrays(bool, length))] = -1
    tokens = draw(arrays.arrays(np.int32, length, elements=st.integers(0, 2**31 - 1)))
    return Prompt(draw(st.text(max_size=9)), draw(st.text(max_size=9)), tokens, cells)


def same(prompt: Prompt, other: Prompt) -> bool:
    return prompt.sample == other.sample and np.array_equal(prompt.cells, other.cells)


def file_of(*given_prompts: Prompt) -> tuple[bytes, PromptsManifest]:
    stream = io.BytesIO()
    manifest = write_prompts(stream, given_prompts, 0, 2)
    return stream.getvalue(), manifest


@given(prompts())
def test_what_was_written_is_read(prompt: Prompt):
    assert same(decode_prompt(encode_prompt(prompt)), prompt)


@given(st.lists(prompts(), max_size=5))
def test_a_file_holds_its_prompts_in_order_and_is_verified(given_prompts: list[Prompt]):
    content, manifest = file_of(*given_prompts)
    read = [decode_prompt(data) for data in read_records(io.BytesIO(content), "file")]
    assert all(map(same, read, given_prompts))
    tokens = sum(prompt.num_tokens for prompt in given_prompts)
    entry = FileEntry(FIRST, len(content), to_text(crc32c(content)))
    assert manifest == PromptsManifest(0, len(given_prompts), tokens, entry)
    verified, samples = verify_prompts(io.BytesIO(content), 0, 2)
    assert verified == manifest
    assert samples.samples() == [prompt.sample for prompt in given_prompts]


def is_cell(example, role, row, column):
    """As the module's docstring says it, of one token."""
    if (example, role, row, column) == (-1, -1, -1, -1):
        return True
    return example >= -1 and role in (0, 1) and row >= 0 and column >= 0


EDGES = st.sampled_from([-(2**15), -2, -1, 0, 1, 2, 2**15 - 1])


@given(
    st.lists(st.lists(st.tuples(EDGES, EDGES, EDGES, EDGES), max_size=5), min_size=1, max_size=3)
)
@pytest.mark.parametrize("by", ["library", "numpy"])
def test_only_cells_are_taken_for_cells(by, spans):
    if by == "library" and native.library is None:
        pytest.skip("the library is not built here")
    # A byte before, so that nothing is aligned.
    block = np.frombuffer(
        b"\0" + np.array([cell for span in spans for cell in span], "<i2").tobytes(), np.uint8
    )
    ends = 1 + np.cumsum([8 * len(span) for span in spans], dtype=np.int64)
    starts = ends - [8 * len(span) for span in spans]
    with pytest.MonkeyPatch.context() as patch:
        if by == "numpy":
            patch.setattr(native, "library", None)
        found = spans_are_cells(block, starts.astype(np.int64), ends)
    assert found == all(is_cell(*cell) for span in spans for cell in span)


def test_cells_of_another_dtype_or_shape_are_refused():
    tokens = np.zeros(2, np.int32)
    wrong: list[Any] = [np.zeros((2, 4)), np.zeros((2, 5), np.int16), np.zeros((1, 4), np.int16)]
    for cells in wrong:
        with pytest.raises(
            TypeError, match=r"sample 's': cells is .* expected int16 of .*\[2, 4\]"
        ):
            Prompt("s", "t", tokens, cells)


def test_a_stream_that_takes_less_is_an_error():
    class Full(io.BytesIO):
        def write(self, block) -> int:
            return super().write(block[:10])

    with pytest.raises(OSError, match="only 10 of"):
        write_prompts(Full(), make_prompts([3]), 0, 1)


def test_every_flipped_bit_is_caught():
    content, _ = file_of(*make_prompts([5, 3]))
    for bit in range(8 * len(content)):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LayerFileError, match=r"prompts-00000-of-00002.tfrecord: record [01] "):
            verify_prompts(io.BytesIO(broken), 0, 2)


def test_every_truncation_is_caught():
    content, manifest = file_of(*make_prompts([5, 3]))
    for length in range(len(content)):
        try:
            found, _ = verify_prompts(io.BytesIO(content[:length]), 0, 2)
        except LayerFileError:
            continue
        # Cut between two records: whole, but not the file that the metadata lists.
        assert found != manifest


def framed(*records: bytes) -> io.BytesIO:
    return io.BytesIO(
        b"".join(frame_header(len(data)) + data + frame_footer(crc32c(data)) for data in records)
    )


def record(tokens: int, cells: bytes, shape: tuple[int, ...], num_tokens: int) -> bytes:
    suffix = encode_suffix(Sample("s", "t", np.zeros(tokens, np.int32), num_tokens), shape)
    return encode_prefix(len(cells), len(suffix), b"cells") + cells + suffix


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (record(1, b"\xff" * 8, (1, 4), 2), "token_ids has 1 values, num_tokens says 2"),
        (record(1, b"\xff" * 8, (4, 1), 1), r"shape is \(4, 1\), expected \(1, 4\)"),
        (record(1, b"\xff" * 6, (1, 4), 1), "cells has 6 bytes, expected 8"),
        (record(1, b"\xff\xff\0\0\xff\xff\0\0", (1, 4), 1), "neither a cell nor -1 throughout"),
        (record(1, b"\xfe\xff\0\0\0\0\0\0", (1, 4), 1), "neither a cell nor -1 throughout"),
        (record(1, b"\0\0\2\0\0\0\0\0", (1, 4), 1), "neither a cell nor -1 throughout"),
        (encode_prefix(0, 0), "the feature num_tokens is missing"),
    ],
)
def test_a_record_that_is_no_prompt_is_refused(data: bytes, message: str):
    with pytest.raises(ExampleError, match=message):
        decode_prompt(data)
    with pytest.raises(LayerFileError, match=f"record 0: .*{message}"):
        verify_prompts(framed(data), 0, 1)


def test_a_record_that_is_encoded_otherwise_is_refused():
    data = encode_prompt(make_prompts([3])[0]) + b"\x98\x06\x01"
    assert same(decode_prompt(data), make_prompts([3])[0])
    with pytest.raises(LayerFileError, match="record 0: not encoded as this version encodes it"):
        verify_prompts(framed(data), 0, 1)


# As part of a dataset.


def problems(path) -> list[str]:
    report = verify(path)
    assert report.repair_list == tuple(sorted({each.file for each in report.problems}))
    return [
        str(problem).removesuffix(": run the same command again, which redoes it")
        for problem in report.problems
    ]


@pytest.fixture(params=["last", "mean", "none"])
def dataset(tmp_path, request):
    write_dataset(tmp_path, [[3, 5, 4], [2]], request.param)
    assert problems(tmp_path) == []
    return tmp_path


def test_prompts_that_are_missing(dataset):
    (dataset / FIRST).unlink()
    assert problems(dataset) == [f"{FIRST}: missing"]
    (dataset / FIRST).mkdir()
    (problem,) = problems(dataset)
    assert problem.startswith(f"{FIRST}: cannot be read: ")


def rewrite(dataset, change) -> None:
    with open(dataset / FIRST, "r+b") as stream:
        changed = change([decode_prompt(data) for data in read_records(stream, "file")])
        stream.seek(0)
        stream.truncate()
        write_prompts(stream, changed, 0, 2)


def test_prompts_in_another_order(dataset):
    rewrite(dataset, lambda prompts: [prompts[1], prompts[0], prompts[2]])
    first, second, third = problems(dataset)
    assert first.startswith(f"{FIRST}: crc32c is ")
    sample = "training/é0.json#0000000"
    assert second == f"{FIRST}: record 0: sample '{sample}1/0', the layers have '{sample}0/0'"
    assert third == f"{FIRST}: record 1: sample '{sample}0/0', the layers have '{sample}1/0'"


def other_last_token(prompt: Prompt) -> Prompt:
    return replace(prompt, token_ids=np.append(prompt.token_ids[:-1], np.int32(7)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda prompts: [*prompts[:2], other_last_token(prompts[2])], "record 2: sample .* is an"),
        (lambda prompts: [replace(prompts[0], task_id="x"), *prompts[1:]], "record 0: .* another"),
        (lambda prompts: prompts[:2], "2 prompts, the layers have 3 samples"),
    ],
    ids=["token", "task", "fewer"],
)
def test_prompts_of_other_samples(dataset, change, message: str):
    rewrite(dataset, change)
    assert re.search(message, "\n".join(problems(dataset)))


def without_cells(prompt: Prompt) -> Prompt:
    return text_prompt(prompt.sample_id, prompt.task_id, prompt.token_ids)


def test_other_cells_are_caught_by_the_checksum(dataset):
    rewrite(dataset, lambda prompts: [without_cells(prompt) for prompt in prompts])
    (problem,) = problems(dataset)
    assert problem.startswith(f"{FIRST}: crc32c is ")


def test_files_that_no_one_listed(dataset):
    shutil.copy(dataset / FIRST, dataset / prompts_file(0, 3))
    assert [str(problem) for problem in verify(dataset).problems] == [
        f"{prompts_file(0, 3)}: not listed in metadata.json: delete it"
    ]


def test_without_metadata_prompts_are_checked_too(dataset):
    (dataset / "metadata.json").unlink()
    (dataset / FIRST).unlink()
    content = bytearray((dataset / prompts_file(1, 2)).read_bytes())
    content[40] ^= 1
    (dataset / prompts_file(1, 2)).write_bytes(content)
    report = verify(dataset)
    assert report.repair_list == (FIRST, prompts_file(1, 2))
    assert shard_file(10, 0, 2) not in report.repair_list
