"""TensorFlow reads what is written here, and writes the same bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from activation_dataset.example import decode_example, encode_prefix, encode_suffix
from activation_dataset.format import Sample, shard_file, to_float32
from activation_dataset.prompts import encode_prompt
from tests.activation_dataset.synthetic import (
    fields_of,
    make_prompts,
    make_rows,
    make_samples,
    stored,
    write_dataset,
)

tf = pytest.importorskip("tensorflow")

SHARDS = [[3, 40, 1], [7]]
HIDDEN = 8


def tf_example(sample, shape, payload, name="activation"):
    def of_bytes(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def of_integers(values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    features = {
        "token_ids": of_integers(sample.token_ids.tolist()),
        "sample_id": of_bytes(sample.sample_id.encode()),
        name: of_bytes(payload),
        "shape": of_integers(shape),
        "num_tokens": of_integers([sample.num_tokens]),
        "task_id": of_bytes(sample.task_id.encode()),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def test_prompts_have_the_same_bytes():
    for prompt in make_prompts([0, 1, 3, 300]):
        payload = prompt.cells.astype("<i2").tobytes()
        sample = Sample(prompt.sample_id, prompt.task_id, prompt.token_ids, prompt.num_tokens)
        expected = tf_example(sample, (prompt.num_tokens, 4), payload, "cells")
        assert encode_prompt(prompt) == expected.SerializeToString(deterministic=True)


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
shapes = st.lists(st.integers(0, 2**31), min_size=1, max_size=2)


@settings(max_examples=300, deadline=None)
@given(samples, st.binary(max_size=300), shapes)
def test_the_same_bytes_as_deterministic_serialization(sample, payload, shape):
    suffix = encode_suffix(sample, shape)
    encoded = encode_prefix(len(payload), len(suffix)) + payload + suffix
    expected = tf_example(sample, shape, payload).SerializeToString(deterministic=True)
    assert encoded == expected
    decoded = decode_example(expected)
    assert fields_of(decoded.sample) == fields_of(sample)
    assert decoded.shape == tuple(shape)
    assert bytes(decoded.activation) == payload


@pytest.mark.parametrize("size", [127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 5_000_000])
def test_the_same_bytes_where_lengths_grow_by_a_byte(size):
    sample = Sample("s" * (size % 1000), "t", np.arange(size % 1000, dtype=np.int32), 5)
    for payload in (bytes(size), bytes(size - 60)):
        suffix = encode_suffix(sample, (1, 2))
        encoded = encode_prefix(len(payload), len(suffix)) + payload + suffix
        expected = tf_example(sample, (1, 2), payload)
        assert encoded == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize("pooling", ["last", "mean", "none"])
@pytest.mark.parametrize("storage_dtype", ["float32", "bfloat16"])
def test_tf_data_parses_every_field(tmp_path, pooling, storage_dtype):
    write_dataset(tmp_path, SHARDS, pooling, storage_dtype, HIDDEN)
    files = [str(tmp_path / shard_file(11, shard, 2)) for shard in range(2)]
    dtype = tf.float32 if storage_dtype == "float32" else tf.bfloat16
    description = {
        "sample_id": tf.io.FixedLenFeature([], tf.string),
        "task_id": tf.io.FixedLenFeature([], tf.string),
        "activation": tf.io.FixedLenFeature([], tf.string),
        "shape": tf.io.FixedLenFeature([2 if pooling == "none" else 1], tf.int64),
        "token_ids": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
        "num_tokens": tf.io.FixedLenFeature([], tf.int64),
    }

    def parse(record):
        example = tf.io.parse_single_example(record, description)
        activation = tf.io.decode_raw(example["activation"], dtype, little_endian=True)
        return example | {"activation": tf.reshape(activation, example["shape"])}

    parsed = list(tf.data.TFRecordDataset(files).map(parse).as_numpy_iterator())
    assert len(parsed) == 4
    for shard, lengths in enumerate(SHARDS):
        shard_samples = make_samples(lengths, pooling, seed=shard)
        rows = make_rows(shard_samples, pooling, HIDDEN, seed=1100 + shard)
        rows = to_float32(stored(rows, storage_dtype))
        for sample in shard_samples:
            example = parsed.pop(0)
            count = sample.num_tokens if pooling == "none" else 1
            expected, rows = rows[:count], rows[count:]
            assert example["sample_id"].decode() == sample.sample_id
            assert example["task_id"].decode() == sample.task_id
            assert example["num_tokens"] == sample.num_tokens
            assert example["token_ids"].tolist() == sample.token_ids.tolist()
            activation = example["activation"].astype(np.float32)
            np.testing.assert_array_equal(
                activation, expected if pooling == "none" else expected[0]
            )
