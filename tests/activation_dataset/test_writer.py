import io
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.checksum import crc32c, to_text
from activation_dataset.example import ExampleError, decode_example
from activation_dataset.record import RecordKind, frame_record
from activation_dataset.sites import HookPoint
from activation_dataset.statistics import LayerStatistics
from activation_dataset.tfrecord import read_records
from activation_dataset.writer import LayerFileWriter
from tests.activation_dataset.synthetic import (
    frames_of,
    make_prompts,
    make_rows,
    stored,
    write_dataset,
)

HIDDEN = 6
LENGTHS = [3, 1, 17, 200, 2, 9]
POOLINGS = ["last", "mean", "none"]

# CRC32C of the layer files of write_dataset with [[3, 700, 1], [40]] and 64 elements, for mlp_out
# and resid_post of layer 10. If the values change, resumed runs mix two kinds of bytes.
KNOWN_FILES = {
    ("last", "float32"): ["6+6QBg==", "XAqiMg==", "7hPk7w==", "HNNMFA=="],
    ("last", "bfloat16"): ["sRttWw==", "Y3h3kg==", "WNHRuw==", "lf+o+Q=="],
    ("mean", "float32"): ["ZqlPDg==", "eJjbuA==", "Rfdz8g==", "/pcZTg=="],
    ("mean", "bfloat16"): ["yMkCKQ==", "g810gw==", "FFseow==", "JeGnSg=="],
    ("none", "float32"): ["ja4NSw==", "APN6dg==", "gneMxg==", "g3l75Q=="],
    ("none", "bfloat16"): ["ylV54w==", "Us93KQ==", "MEZA2g==", "Z/63jA=="],
}
KNOWN_PROMPTS = ["cimjDw==", "H5NoVA=="]


def write(lengths, rows, kind, splits=()):
    """Return the bytes and the manifest of a file, written in one call for each piece."""
    frames = frames_of(make_prompts(lengths), kind)
    stream = io.BytesIO()
    writer = LayerFileWriter(stream, 10, kind)
    counts = [frame.vectors for frame in frames]
    for indices in np.split(np.arange(len(frames)), sorted(splits)):
        if len(indices):
            first, last = indices[0], indices[-1] + 1
            piece = rows[sum(counts[:first]) : sum(counts[:last])]
            writer.append(frames[first:last], piece, LayerStatistics.of_vectors(piece))
    return stream.getvalue(), writer.finish(2, 5, "xla")


@pytest.mark.parametrize(("pooling", "storage_dtype"), KNOWN_FILES)
def test_the_bytes_are_those_of_every_version(tmp_path, pooling, storage_dtype):
    hook_points: tuple[HookPoint, ...] = ("mlp_out", "resid_post")
    metadata = write_dataset(
        tmp_path, [[3, 700, 1], [40]], pooling, storage_dtype, 64, (10,), hook_points=hook_points
    )
    files = [entry.crc32c for shard in metadata.shards for entry in shard.files.values()]
    assert files == KNOWN_FILES[pooling, storage_dtype]
    assert [shard.prompts.crc32c for shard in metadata.shards] == KNOWN_PROMPTS


@settings(max_examples=30)
@given(st.sampled_from(POOLINGS), st.lists(st.integers(0, 6), max_size=3))
def test_the_same_bytes_whatever_the_split(pooling, splits):
    kind = RecordKind(pooling, "float32", HIDDEN)
    rows = make_rows(make_prompts(LENGTHS), pooling, HIDDEN, seed=1)
    content, manifest = write(LENGTHS, rows, kind, splits)
    whole, other = write(LENGTHS, rows, kind)
    assert content == whole
    assert manifest.file.crc32c == to_text(crc32c(content))
    assert (manifest.samples, manifest.tokens, manifest.vectors) == (6, 232, len(rows))
    assert replace(manifest, statistics=other.statistics) == other


def test_vectors_as_ml_dtypes_has_them_and_reused_after_the_call():
    kind = RecordKind("none", "bfloat16", HIDDEN)
    prompts = make_prompts(LENGTHS)
    rows = make_rows(prompts, "none", HIDDEN, seed=1)
    expected, _ = write(LENGTHS, stored(rows, "bfloat16"), kind)
    stream = io.BytesIO()
    narrow = rows.astype(ml_dtypes.bfloat16)
    writer = LayerFileWriter(stream, 10, kind)
    statistics = LayerStatistics.of_vectors(narrow.view(np.uint16))
    writer.append(frames_of(prompts, kind), narrow, statistics)
    narrow[...] = 0
    assert stream.getvalue() == expected


@pytest.mark.parametrize(
    ("vectors", "frames", "message"),
    [
        (np.zeros((2, 7), np.float32), [4, 5], r"shape \(2, 7\), expected \[2, 6\]"),
        (np.zeros((2, 6)), [4, 5], "dtype float64, expected float32"),
        (np.zeros((1, 6), np.float32), [4], "statistics count 2 vectors, expected 1"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(vectors, frames, message):
    kind = RecordKind("last", "float32", HIDDEN)
    stream = io.BytesIO()
    writer = LayerFileWriter(stream, 10, kind)
    statistics = LayerStatistics.of_vectors(np.zeros((2, HIDDEN), np.float32))
    with pytest.raises((ValueError, TypeError), match=message):
        writer.append(frames_of(make_prompts(frames), kind), vectors, statistics)
    assert stream.getvalue() == b""


def test_a_stream_that_takes_only_a_part_is_an_error():
    class Short(io.BytesIO):
        def write(self, content):
            return super().write(bytes(content)[:-1])

    kind = RecordKind("last", "float32", HIDDEN)
    rows = np.zeros((1, HIDDEN), np.float32)
    writer = LayerFileWriter(Short(), 10, kind)
    with pytest.raises(OSError, match=r"only \d+ of \d+ bytes were written"):
        writer.append(frames_of(make_prompts([4]), kind), rows, LayerStatistics.of_vectors(rows))


# Records.


def test_token_ids_that_do_not_fit_the_pooling_are_refused():
    sample = RecordKind("none", "float32", HIDDEN).sample(*make_prompts([4]))
    with pytest.raises(ValueError, match=r"has 4 token_ids; with pooling 'last' .* needs 1"):
        frame_record(sample, RecordKind("last", "float32", HIDDEN))


def test_a_record_of_another_kind_is_refused():
    written = RecordKind("last", "float32", HIDDEN)
    content, _ = write([4], np.zeros((1, HIDDEN), np.float32), written)
    (data,) = read_records(io.BytesIO(content), "file")
    for change, message in (
        ({"pooling": "mean"}, "has 1 token_ids; with pooling 'mean'"),
        ({"hidden": 7}, r"shape is \(6,\), expected \(7,\)"),
        ({"storage_dtype": "bfloat16"}, "activation has 24 bytes, expected 12"),
    ):
        with pytest.raises(ExampleError, match=message):
            replace(written, **change).activation(decode_example(data))
