import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation_dataset import native
from activation_dataset.checksum import crc32c
from activation_dataset.example import ACTIVATION, decode_example
from activation_dataset.format import Sample
from activation_dataset.protobuf import varint
from activation_dataset.record import RecordKind, frame_record
from activation_dataset.tfrecord import frame_footer, frame_header
from activation_dataset.verifying.canonical import (
    NotCanonicalError,
    count_varints,
    parse_records,
    read_blocks,
)
from activation_dataset.verifying.sample_table import SampleTable

SIZES = [127, 128, 1, 300, 16_383, 2]


@pytest.fixture(params=["library", "numpy"], autouse=True, scope="module")
def by(request):
    """Every test is run by both; they must not differ in what they take."""
    if request.param == "library" and native.library is None:
        pytest.skip("the library is not built here")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(native, "library", None)
        yield request.param


def kind_of(pooling):
    return RecordKind(pooling, "bfloat16", 3)


def make_samples(pooling, lengths, seed=0):
    rng = np.random.default_rng(seed)
    samples = []
    for number, length in enumerate(lengths):
        tokens = rng.integers(0, 2 ** rng.integers(1, 28, length), dtype=np.int32)
        kept = tokens[-1:] if pooling == "last" else tokens
        samples.append(Sample(f"é/{'x' * number}#{number}", "t" * (number % 3), kept, length))
    return samples


def payload_of(size):
    return np.random.default_rng(size).bytes(size)


def record_of(sample, kind):
    frame = frame_record(sample, kind)
    data = frame.prefix + payload_of(frame.payload_bytes) + frame.suffix
    return frame_header(len(data)) + data + frame_footer(crc32c(data))


def parse(content, kind, block_bytes=1 << 20):
    """The samples and payloads of a file."""
    tables, payloads = [], []
    for block in read_blocks(io.BytesIO(content), block_bytes):
        kept = 1 if kind.pooling == "last" else None
        records = parse_records(block, ACTIVATION, 3, kind.pooling == "none", kept)
        tables.append(records.samples)
        spans = zip(records.payload_starts, records.payload_ends, strict=True)
        payloads += [block.data[start:end].tobytes() for start, end in spans]
    return SampleTable.joined(tables), payloads


@pytest.mark.parametrize("pooling", ["last", "mean", "none"])
@pytest.mark.parametrize("block_bytes", [1, 100, 5000, 1 << 20])
def test_what_was_written_is_read_whatever_the_blocks(pooling, block_bytes):
    kind, samples = kind_of(pooling), make_samples(pooling, SIZES)
    content = b"".join(record_of(sample, kind) for sample in samples)
    table, payloads = parse(content, kind, block_bytes)
    assert table.samples() == samples
    assert payloads == [payload_of(frame_record(each, kind).payload_bytes) for each in samples]


def test_an_empty_file_has_no_records():
    assert len(parse(b"", kind_of("last"))[0]) == 0


@pytest.mark.parametrize("pooling", ["last", "none"])
def test_every_flipped_bit_of_a_file_is_refused(pooling):
    kind = kind_of(pooling)
    content = b"".join(record_of(sample, kind) for sample in make_samples(pooling, [3, 2]))
    for bit in range(8 * len(content)):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NotCanonicalError):
            parse(bytes(broken), kind)


def test_every_truncation_is_refused():
    kind = kind_of("none")
    records = [record_of(sample, kind) for sample in make_samples("none", [3, 2])]
    content = b"".join(records)
    for length in range(len(content)):
        if length not in (0, len(records[0])):
            with pytest.raises(NotCanonicalError):
                parse(content[:length], kind, 50)


@pytest.mark.parametrize("pooling", ["last", "mean", "none"])
def test_data_that_is_taken_is_what_would_be_written(pooling):
    """Also where the checksums are right: each byte of a record's data, changed in every way."""
    kind = kind_of(pooling)
    sample = make_samples(pooling, [2], seed=1)[0]
    record = record_of(sample, kind)
    taken = 0
    for place in range(12, len(record) - 4):
        for value in {*range(0, 256, 5), 0x80, 0x0A, 0x12, 0x1A}:
            data = bytearray(record[12:-4])
            data[place - 12] = value
            try:
                table, payloads = parse(
                    frame_header(len(data)) + data + frame_footer(crc32c(data)), kind
                )
            except NotCanonicalError:
                continue
            frame = frame_record(table.samples()[0], kind)
            assert frame.prefix + payloads[0] + frame.suffix == bytes(data)
            taken += 1
    assert taken > 100


@given(st.binary(max_size=60), st.integers(0, 3))
def test_nonsense_is_refused_and_nothing_else(junk, where):
    data = bytearray(record_of(make_samples("none", [2])[0], kind_of("none"))[12:-4])
    data[where * 20 : where * 20 + len(junk) // 2] = junk
    content = frame_header(len(data)) + bytes(data) + frame_footer(crc32c(bytes(data)))
    try:
        table, _ = parse(content, kind_of("none"))
    except NotCanonicalError:
        return
    assert table.samples() == [decode_example(bytes(data)).sample]


@pytest.mark.parametrize("length", [2**20, 2**40, 2**64 - 1])
def test_a_length_past_the_end_is_refused_before_it_is_believed(length):
    header = struct.pack("<Q", length)
    content = frame_header(length) + bytes(50)
    assert content.startswith(header)
    with pytest.raises(NotCanonicalError, match="the file ends inside a record"):
        parse(content, kind_of("last"))


def test_a_prompt_without_tokens_is_left_to_the_slow_reader():
    content = record_of(Sample("id", "task", np.empty(0, np.int32), 0), kind_of("none"))
    with pytest.raises(NotCanonicalError):
        parse(content, kind_of("none"))


NUMBERS = st.one_of(st.integers(0, 2**28 - 1), st.sampled_from([0, 127, 128, 2**21, 2**28, 2**32]))


@given(st.lists(st.lists(NUMBERS, max_size=90), min_size=1, max_size=4), st.integers(0, 200))
def test_counting_varints(spans, junk):
    encoded = [b"".join(map(varint, span)) for span in spans]
    content = bytearray(b"".join(encoded))
    ends = np.cumsum([len(each) for each in encoded])
    found = count_varints(np.frombuffer(content, np.uint8), ends).tolist()
    usual = all(spans) and max(map(max, spans)) < 2**28
    assert found == ([len(span) for span in spans] if usual else [-1] * len(spans))
    if not usual:
        return
    place = junk % len(content)
    last = content[place] < 0x80
    content[place] ^= 0x80  # joins two numbers, or cuts one in two
    found = count_varints(np.frombuffer(content, np.uint8), ends).tolist()
    change = -1 if last else 1
    span = int(np.searchsorted(ends, place, side="right"))
    expected = [len(each) + change * (number == span) for number, each in enumerate(spans)]
    assert found in (expected, [-1] * len(spans))
    if last and place + 1 in ends:
        assert found == [-1] * len(spans)


def test_tables_are_equal_only_if_all_is():
    samples = make_samples("none", SIZES)
    table = SampleTable.of(samples)
    assert table == SampleTable.joined([SampleTable.of(samples[:2]), SampleTable.of(samples[2:])])
    for changed in (samples[:-1], samples[::-1], make_samples("none", SIZES, seed=1)):
        assert table != SampleTable.of(changed)


@pytest.mark.parametrize("lengths", [[3, 1, 400], [1], [], [2, 0, 5]])
def test_a_table_of_prompts_is_pooled_as_layer_files_are(lengths):
    whole = SampleTable.of(make_samples("none", lengths))
    last = [
        Sample(each.sample_id, each.task_id, each.token_ids[-1:], each.num_tokens)
        for each in make_samples("none", lengths)
    ]
    assert whole.kept("last") == SampleTable.of(last)
    assert whole.kept("mean") == whole.kept("none") == whole
