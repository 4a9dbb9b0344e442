"""The dataset that the job makes from the shipped tasks and from published tasks."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from activation_dataset.reading.reader import ActivationDataset
from corpus.parse import parse_tasks
from corpus.prompt import render
from corpus.task import Item, RejectedTask, Task
from corpus.template import load_template
from qwen.source import open_model
from tests.end_to_end.job import metadata_of, problems_of, rejections, run

BAD = b'{"train": [], "test": []}\n{"id": "twice", "text": 5}\n'
"""Two records that are rejected."""


@pytest.fixture(scope="module")
def tasks(example_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the shipped tasks and some bad tasks."""
    folder = shutil.copytree(example_tasks, tmp_path_factory.mktemp("corpus") / "tasks")
    (folder / "two.jsonl").write_bytes(BAD)
    return folder


@pytest.fixture(scope="module")
def dataset(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset with default flags, except for several shards."""
    out = tmp_path_factory.mktemp("demo") / "out"
    run("random:tiny", tasks, out, "--samples_per_shard", "5")
    return out


def test_the_folder_holds_what_it_should_and_nothing_else(dataset: Path):
    assert problems_of(dataset) == []
    names = {path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file()}
    layer_files = {
        f"layer_{layer}/activations-{shard:05d}-of-00004.tfrecord"
        for layer in range(10, 24)
        for shard in range(4)
    }
    assert layer_files <= names
    rest = {name for name in names - layer_files if name.partition("/")[0] != "manifests"}
    prompts = {f"prompts/prompts-{shard:05d}-of-00004.tfrecord" for shard in range(4)}
    others = {"README.md", "metadata.json", "run.json", "errors/rejected.jsonl"}
    assert rest == prompts | others


def test_the_metadata_has_the_fields_that_readers_know(dataset: Path, tasks: Path):
    fields = json.loads((dataset / "metadata.json").read_text())
    expected = {
        "model_name": "random:tiny",
        "layers_extracted": [*range(10, 24)],
        "num_layers_extracted": 14,
        "hidden_dim": 64,
        "total_samples": 16,
        "byte_order": "little",
    }
    assert {name: fields[name] for name in expected} == expected
    assert {file["path"] for file in fields["inputs"]} == {path.name for path in tasks.iterdir()}
    assert [shard["samples"] for shard in fields["batches"]] == [5, 5, 5, 1]
    assert fields["ops"]
    for shard in fields["batches"]:
        assert set(shard["files"]) == {str(layer) for layer in range(10, 24)}
        for entry in shard["files"].values():
            assert (dataset / entry["path"]).stat().st_size == entry["bytes"]
            assert entry["crc32c"]


def test_every_record_read_is_written_or_rejected(dataset: Path, tasks: Path):
    """The stored tokens equal the tokens of prompts that the test renders and tokenizes itself."""
    items: list[Item] = []
    for path in sorted(tasks.iterdir()):
        with open(path, "rb") as stream:
            items += list(parse_tasks(stream, path.name))
    rejected = [item for item in items if isinstance(item, RejectedTask)]
    assert len(rejected) == 2
    assert {(each["source"], each["task_id"], each["reason"]) for each in rejections(dataset)} == {
        (each.source, each.task_id, each.reason) for each in rejected
    }
    metadata = metadata_of(dataset)
    assert metadata.counts.tasks.rejected == Counter(each.reason for each in rejected)
    assert metadata.counts.tasks.read == len(items)
    tokenizer, template = open_model("random:tiny").tokenizer(), load_template("digits")
    expected = {
        task.sample_id(index): tokenizer(render(template, task, index).text)["input_ids"]
        for task in items
        if isinstance(task, Task)
        for index in range(len(task.test))
    }
    for layer in (10, 23):
        records = list(ActivationDataset(dataset).records(layer))
        assert len(records) == len(expected) == metadata.total_samples
        for record in records:
            token_ids = expected[record.sample_id]
            assert record.num_tokens == len(token_ids)
            assert list(record.token_ids) == token_ids[-1:]


def test_tensorflow_alone_reads_every_file_and_gets_the_statistics(dataset: Path):
    import tensorflow as tf

    features = {
        "sample_id": tf.io.FixedLenFeature([], tf.string),
        "activation": tf.io.FixedLenFeature([], tf.string),
        "shape": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
        "token_ids": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
        "num_tokens": tf.io.FixedLenFeature([], tf.int64),
    }
    metadata = metadata_of(dataset)
    orders = set()
    for layer, statistics in metadata.statistics.items():
        files = [str(dataset / shard.files[layer].path) for shard in metadata.shards]
        vectors, tokens, order = [], 0, []
        for data in tf.data.TFRecordDataset(files):
            record = tf.io.parse_single_example(data, features)
            vector = tf.io.decode_raw(record["activation"], tf.float32, little_endian=True)
            assert vector.shape == record["shape"].numpy() == [64]
            assert len(record["token_ids"]) == 1
            vectors.append(vector.numpy())
            tokens += int(record["num_tokens"])
            order.append(record["sample_id"].numpy())
        orders.add(tuple(order))
        found = np.array(vectors, np.float64)
        assert (len(found), tokens) == (metadata.total_samples, metadata.total_tokens)
        norms = np.linalg.norm(found, axis=1)
        assert (statistics.count, statistics.nonfinite_count) == (len(found), 0)
        np.testing.assert_allclose(statistics.mean, found.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(statistics.variance, found.var(axis=0), rtol=1e-4)
        np.testing.assert_allclose(statistics.mean_norm, norms.mean(), rtol=1e-5)
        np.testing.assert_allclose(statistics.mean_squared_norm, (norms**2).mean(), rtol=1e-5)
        np.testing.assert_allclose(statistics.max_norm, norms.max(), rtol=1e-5)
    assert len(orders) == 1, "every layer has the same samples in the same order"


def test_published_tasks_make_a_dataset(arc_tasks: Path, tmp_path: Path):
    run("random:tiny", arc_tasks / "per_task", tmp_path / "out", "--batch_size", "4")
    assert problems_of(tmp_path / "out") == []
    tests = [json.loads(path.read_bytes())["test"] for path in (arc_tasks / "per_task").iterdir()]
    metadata = metadata_of(tmp_path / "out")
    assert metadata.total_samples == sum(map(len, tests))
    assert metadata.counts.rejected == ({}, {}, {})
