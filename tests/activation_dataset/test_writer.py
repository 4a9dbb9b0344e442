import io

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.checksum import crc32c, to_text
from activation_dataset.example import decode_example
from activation_dataset.format import to_float32, to_storage
from activation_dataset.record import RecordKind
from activation_dataset.statistics_builder import StatisticsBuilder
from activation_dataset.tfrecord import read_records
from activation_dataset.writer import LayerFileWriter
from tests.activation_dataset.synthetic import make_rows, make_samples, row_counts

HIDDEN = 6
LENGTHS = [3, 1, 17, 200, 2, 9]
POOLINGS = ["last", "mean", "none"]


def write(samples, rows, pooling, storage_dtype="float32", splits=(), hidden=HIDDEN):
    stream = io.BytesIO()
    writer = LayerFileWriter(stream, 10, pooling, storage_dtype, hidden)
    counts = row_counts(samples, pooling)
    for indices in np.split(np.arange(len(samples)), sorted(splits)):
        if len(indices):
            first, last = indices[0], indices[-1] + 1
            piece = rows[sum(counts[:first]) : sum(counts[:last])]
            writer.append(samples[first:last], piece, counts[first:last])
    return stream.getvalue(), writer.finish(2, 5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("storage_dtype", ["float32", "bfloat16"])
def test_what_was_written_is_read(pooling, storage_dtype):
    samples = make_samples(LENGTHS, pooling)
    rows = make_rows(samples, pooling, HIDDEN, seed=1)
    content, manifest = write(samples, rows, pooling, storage_dtype)
    records = list(read_records(io.BytesIO(content), "file"))
    assert len(records) == len(samples)
    kind = RecordKind(pooling, storage_dtype, HIDDEN)
    stored = []
    for sample, record in zip(samples, records, strict=True):
        example = decode_example(record)
        assert example.sample == sample
        assert example.shape == ((sample.num_tokens, HIDDEN) if pooling == "none" else (HIDDEN,))
        stored.append(kind.activation(example).reshape(-1, HIDDEN))
    expected = to_float32(to_storage(rows, storage_dtype))
    np.testing.assert_array_equal(to_float32(np.concatenate(stored)), expected)
    builder = StatisticsBuilder(HIDDEN)
    builder.update(expected)
    assert manifest.file.statistics == builder.result()


def test_the_manifest_describes_the_file():
    samples = make_samples(LENGTHS, "none")
    content, manifest = write(samples, make_rows(samples, "none", HIDDEN, 1), "none")
    assert (manifest.shard, manifest.samples) == (2, 6)
    assert manifest.tokens == manifest.vectors == sum(LENGTHS)
    assert manifest.file.layer == 10
    assert manifest.file.path == "layer_10/activations-00002-of-00005.tfrecord"
    assert manifest.file.bytes == len(content)
    assert manifest.file.crc32c == to_text(crc32c(content))
    samples = make_samples(LENGTHS, "mean")
    _, manifest = write(samples, make_rows(samples, "mean", HIDDEN, 1), "mean")
    assert (manifest.tokens, manifest.vectors) == (sum(LENGTHS), len(LENGTHS))


@settings(max_examples=30)
@given(st.sampled_from(POOLINGS), st.lists(st.integers(0, 6), max_size=3))
def test_the_same_bytes_whatever_the_split(pooling, splits):
    samples = make_samples(LENGTHS, pooling)
    rows = make_rows(samples, pooling, HIDDEN, seed=1)
    assert write(samples, rows, pooling, splits=splits) == write(samples, rows, pooling)


def test_large_and_small_records_in_one_file():
    """Large activations take another path: written where they lie, checksums combined."""
    lengths = [2, 700, 3, 1500, 1200, 1]
    samples = make_samples(lengths, "none")
    rows = make_rows(samples, "none", 64, seed=1)
    content, manifest = write(samples, rows, "none", hidden=64)
    assert manifest.file.crc32c == to_text(crc32c(content))
    records = [decode_example(data) for data in read_records(io.BytesIO(content), "file")]
    assert [record.sample for record in records] == samples
    assert b"".join(record.activation for record in records) == rows.tobytes()


def test_bfloat16_rows_are_stored_as_they_are():
    samples = make_samples(LENGTHS, "last")
    rows = make_rows(samples, "last", HIDDEN, seed=1)
    narrow = rows.astype(ml_dtypes.bfloat16)
    assert write(samples, narrow, "last", "bfloat16") == write(samples, rows, "last", "bfloat16")
    widened = write(samples, narrow.astype(np.float32), "last", "float32")
    assert write(samples, narrow, "last", "float32") == widened


def test_values_that_are_not_finite_are_written_and_counted():
    samples = make_samples(LENGTHS, "last")
    rows = make_rows(samples, "last", HIDDEN, seed=1)
    rows[2, 3] = np.nan
    _, manifest = write(samples, rows, "last")
    assert manifest.file.statistics.nonfinite_count == 1
    assert (manifest.vectors, manifest.file.statistics.count) == (6, 5)


def test_a_layer_file_without_samples():
    content, manifest = write([], np.empty((0, HIDDEN), np.float32), "last")
    assert content == b""
    assert (manifest.samples, manifest.file.bytes, manifest.file.crc32c) == (0, 0, "AAAAAA==")


def test_rows_may_be_reused_after_the_call():
    samples = make_samples(LENGTHS, "none")
    rows = make_rows(samples, "none", HIDDEN, seed=1)
    expected = write(samples, rows, "none")
    stream = io.BytesIO()
    writer = LayerFileWriter(stream, 10, "none", "float32", HIDDEN)
    writer.append(samples, rows, row_counts(samples, "none"))
    rows[...] = 0
    assert (stream.getvalue(), writer.finish(2, 5)) == expected


@pytest.mark.parametrize(
    ("rows", "counts", "message"),
    [
        ((2, HIDDEN), [1], "2 samples, but 1 row counts"),
        ((2, HIDDEN + 1), [1, 1], r"rows have shape \(2, 7\), expected \[2, 6\]"),
        ((3, HIDDEN), [1, 1], r"rows have shape \(3, 6\), expected \[2, 6\]"),
        ((3, HIDDEN), [1, 2], r"has 2 rows; with pooling 'last' a prompt of 5 tokens needs 1"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(rows, counts, message):
    stream = io.BytesIO()
    writer = LayerFileWriter(stream, 10, "last", "float32", HIDDEN)
    with pytest.raises(ValueError, match=message):
        writer.append(make_samples([4, 5], "last"), np.zeros(rows, np.float32), counts)
    assert stream.getvalue() == b""


def test_token_ids_that_do_not_fit_the_pooling_are_refused():
    writer = LayerFileWriter(io.BytesIO(), 10, "last", "float32", HIDDEN)
    with pytest.raises(ValueError, match=r"has 4 token_ids; with pooling 'last' .* needs 1"):
        writer.append(make_samples([4], "none"), np.zeros((1, HIDDEN), np.float32), [1])


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling 'max' is not one of last, mean, none"):
        LayerFileWriter(io.BytesIO(), 10, "max", "float32", HIDDEN)  # type: ignore[arg-type]


def test_a_stream_that_takes_only_a_part_is_an_error():
    class Short(io.BytesIO):
        def write(self, content):
            return super().write(bytes(content)[:-1])

    writer = LayerFileWriter(Short(), 10, "last", "float32", HIDDEN)
    with pytest.raises(OSError, match=r"only \d+ of \d+ bytes were written"):
        writer.append(make_samples([4], "last"), np.zeros((1, HIDDEN), np.float32), [1])
