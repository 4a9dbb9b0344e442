"""Compatibility with TensorFlow, which must read these records and write the same bytes."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from activation_dataset import ActivationDataset
from activation_dataset.example import decode_example, encode_prefix, encode_suffix
from activation_dataset.format import Sample, shard_file
from activation_dataset.prompts import NO_CELL, decode_prompt, encode_prompt
from tests.activation_dataset.synthetic import (
    fields_of,
    make_prompts,
    write_dataset,
)

tf = pytest.importorskip("tensorflow")


def tf_example(sample, shape, payload, name="activation", turns=None, roles=()):
    def of_bytes(*values):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

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
    if sample.truncated_tokens:
        features["truncated_tokens"] = of_integers([sample.truncated_tokens])
    if sample.positions is not None:
        features["positions"] = of_integers(sample.positions.tolist())
    if sample.offset:
        features["offset"] = of_integers([sample.offset])
    if sample.prepended_bos:
        features["prepended_bos"] = of_integers([1])
    if turns is not None:
        features["turns"] = of_integers([turn + 1 for turn in turns.tolist()])
        features["roles"] = of_bytes(*[role.encode() for role in roles])
    return tf.train.Example(features=tf.train.Features(feature=features))


def test_prompts_have_the_same_bytes():
    roles = ("system", "user", "assistant")
    for prompt in truncated([0, 1, 3, 300], 0):
        cells = prompt.cells if (prompt.cells != NO_CELL).any() else prompt.cells[:0]
        turns = (np.arange(prompt.num_tokens) % 4 - 1).astype(np.int16)
        for each in (prompt, replace(prompt, turns=turns, roles=roles)):
            expected = tf_example(
                *(each.sample, cells.shape, cells.astype("<i2").tobytes(), "cells"),
                *(each.turns, each.roles),
            )
            encoded = encode_prompt(each)
            assert encoded == expected.SerializeToString(deterministic=True)
            assert fields_of(decode_prompt(encoded)) == fields_of(each)


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
    truncated_tokens=st.one_of(st.just(0), st.integers(0, 2**40)),
    positions=st.one_of(
        st.none(), hnp.arrays(np.int32, st.integers(0, 30), elements=st.integers(0, 2**31 - 1))
    ),
    offset=st.one_of(st.just(0), st.integers(0, 2**40)),
    prepended_bos=st.booleans(),
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


@pytest.mark.parametrize("size", [127, 128, 16_384, 2_097_151, 2_097_152])
def test_the_same_bytes_where_lengths_grow_by_a_byte(size):
    sample = Sample("s" * (size % 1000), "t", np.arange(size % 1000, dtype=np.int32), 5)
    for payload in (bytes(size), bytes(size - 60)):
        suffix = encode_suffix(sample, (1, 2))
        encoded = encode_prefix(len(payload), len(suffix)) + payload + suffix
        expected = tf_example(sample, (1, 2), payload)
        assert encoded == expected.SerializeToString(deterministic=True)


def truncated(lengths, seed):
    prompts = make_prompts(lengths, seed)
    return [replace(each, truncated_tokens=each.num_tokens // 3) for each in prompts]


def vectors_of(example, storage_dtype):
    """Decode the vectors of a parsed record with TensorFlow only, as the format page shows."""
    if storage_dtype in ("float32", "bfloat16"):
        values = tf.io.decode_raw(example["activation"], getattr(tf, storage_dtype))
        return tf.reshape(values, example["shape"])
    dtype = {"int8": np.int8, "float8_e4m3": ml_dtypes.float8_e4m3fn}[storage_dtype]
    elements = np.arange(256, dtype=np.uint8).view(dtype).astype("f4")
    rows = tf.reshape(tf.io.decode_raw(example["activation"], tf.uint8), example["shape"] + [0, 4])
    scales = tf.bitcast(rows[:, :4], tf.float32)[:, None]
    return tf.gather(elements, tf.cast(rows[:, 4:], tf.int32)) * scales


def some_chosen(lengths, seed):
    prompts = make_prompts(lengths, seed)
    return [
        replace(each, positions=np.arange(1, each.num_tokens, 3, dtype=np.int32), offset=10 * seed)
        for each in prompts
    ]


@pytest.mark.parametrize("storage_dtype", ["float32", "int8", "float8_e4m3"])
def test_tf_data_parses_chosen_tokens(tmp_path, storage_dtype):
    write_dataset(tmp_path, [[3, 40, 2], [7]], "none", storage_dtype, prompts_of=some_chosen)
    fields = {
        "activation": tf.io.FixedLenFeature([], tf.string),
        "offset": tf.io.FixedLenFeature([], tf.int64, default_value=0),
    }
    for name in ("shape", "token_ids", "positions"):
        fields[name] = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
    dataset = ActivationDataset(tmp_path)
    paths = [str(tmp_path / shard_file(11, shard, 2)) for shard in range(2)]
    for record, parsed in zip(dataset[11], tf.data.TFRecordDataset(paths), strict=True):
        example = tf.io.parse_single_example(parsed, fields)
        values = vectors_of(example, storage_dtype).numpy()
        np.testing.assert_array_equal(values, record.activation)
        positions = example["positions"].numpy().tolist()
        assert record.positions is not None
        assert record.positions.tolist() == positions == [*range(1, record.num_tokens, 3)]
        assert len(record.token_ids) == len(values) == len(positions)
        assert int(example["offset"]) == record.offset


@pytest.mark.parametrize(("pooling", "storage_dtype"), [("none", "bfloat16"), ("last", "float32")])
def test_tf_data_parses_every_field(tmp_path, pooling, storage_dtype):
    write_dataset(tmp_path, [[3, 40, 1], [7]], pooling, storage_dtype, prompts_of=truncated)
    files = [str(tmp_path / shard_file(11, shard, 2)) for shard in range(2)]
    strings = dict.fromkeys(["sample_id", "task_id", "activation"], tf.string)
    fields = {name: tf.io.FixedLenFeature([], kind) for name, kind in strings.items()}
    fields["num_tokens"] = tf.io.FixedLenFeature([], tf.int64)
    fields["truncated_tokens"] = tf.io.FixedLenFeature([], tf.int64, default_value=0)
    for name in ("shape", "token_ids"):
        fields[name] = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)

    def parse(record):
        example = tf.io.parse_single_example(record, fields)
        return example | {"activation": vectors_of(example, storage_dtype)}

    parsed = tf.data.TFRecordDataset(files).map(parse).as_numpy_iterator()
    for example, record in zip(parsed, ActivationDataset(tmp_path)[11], strict=True):
        assert example["sample_id"].decode() == record.sample_id
        assert example["task_id"].decode() == record.task_id
        assert example["num_tokens"] == record.num_tokens
        assert example["truncated_tokens"] == record.truncated_tokens == record.num_tokens // 3
        assert example["token_ids"].tolist() == record.token_ids.tolist()
        np.testing.assert_array_equal(example["activation"].astype("f4"), record.activation)
