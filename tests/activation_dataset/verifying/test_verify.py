import json
import multiprocessing
import os
import re
import shutil
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest

from activation_dataset import ActivationDataset
from activation_dataset.checksum import crc32c
from activation_dataset.folder import LocalFolder
from activation_dataset.format import shard_file
from activation_dataset.metadata import Metadata
from activation_dataset.record import RecordKind
from activation_dataset.tfrecord import frame_footer, frame_header, read_records
from activation_dataset.verifying.dataset import _verify_shards, verify
from activation_dataset.verifying.layer_file import (
    ExpectedRecords,
    LayerFileError,
    read_samples,
    verify_file,
)
from tests.activation_dataset.synthetic import make_samples, write_dataset

SHARDS = [[3, 40, 1], [7], [12, 2]]
FIRST, MIDDLE, LAST = (shard_file(layer, 1, 3) for layer in (10, 11, 12))


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path, SHARDS, "none", "bfloat16", rejected={"ragged_grid": 2})
    errors = tmp_path / "errors"
    errors.mkdir()
    (errors / "rejected.jsonl").write_text('{"reason": "ragged_grid", "task_id": "a"}\n' * 2)
    (tmp_path / "run.json").write_text("{}")
    return tmp_path


def found(path):
    """What is wrong with a dataset, and which layer files must be written again."""
    report = verify(path)
    return [str(problem) for problem in report.problems], list(report.repair_list)


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("pooling", ["last", "mean", "none"])
@pytest.mark.parametrize("storage_dtype", ["float32", "bfloat16"])
def test_a_sound_dataset(tmp_path, pooling, storage_dtype):
    metadata = write_dataset(tmp_path, SHARDS, pooling, storage_dtype)
    report = verify(tmp_path)
    assert report.problems == ()
    assert report.files == 12
    assert report.bytes == sum(
        entry.bytes for batch in metadata.shards for entry in (batch.prompts, *batch.files.values())
    )


def test_a_sound_dataset_of_large_records(tmp_path):
    write_dataset(tmp_path, [[5, 1400, 3, 2500], [2]], "none", "bfloat16", hidden=256)
    assert verify(tmp_path).problems == ()


def test_workers_find_the_same(dataset):
    flip(dataset / MIDDLE, 400)
    assert verify(dataset, workers=2) == verify(dataset)
    assert len(verify(dataset).problems) == 1


def test_a_url_is_verified_too(dataset):
    pytest.importorskip("fsspec")
    flip(dataset / MIDDLE, 400)
    assert verify(f"file://{dataset}").problems == verify(dataset).problems


def test_every_flipped_bit_of_a_layer_file_is_caught(dataset):
    content = (dataset / FIRST).read_bytes()
    metadata = Metadata.from_json((dataset / "metadata.json").read_text())
    kind = RecordKind("none", "bfloat16", 8)
    expected = ExpectedRecords(kind, make_samples(SHARDS[1], "none", seed=1))
    path = dataset / FIRST
    with open(path, "r+b") as stream:
        manifest = verify_file(stream, 10, 1, 3, expected)
        assert manifest.file.entry == metadata.shards[1].files[10]
        for bit in range(8 * len(content)):
            broken = content[bit // 8] ^ 1 << bit % 8
            stream.seek(bit // 8)
            stream.write(bytes([broken]))
            with pytest.raises(LayerFileError, match="record 0 at byte 0: "):
                verify_file(stream, 10, 1, 3, expected)
            with pytest.raises(LayerFileError, match="record 0 at byte 0: "):
                read_samples(stream, "file", kind)
            stream.seek(bit // 8)
            stream.write(content[bit // 8 : bit // 8 + 1])
        assert verify_file(stream, 10, 1, 3, expected) == manifest


def test_flipped_bits_anywhere_are_caught(dataset):
    rng = np.random.default_rng(0)
    files = [path for path in dataset.rglob("*") if path.suffix in (".tfrecord", ".json")]
    for path in files:
        if path.name == "run.json":
            continue
        content = path.read_bytes()
        for bit in rng.integers(0, 8 * len(content), 25):
            flip(path, bit)
            problems, redo = found(dataset)
            name = path.relative_to(dataset).as_posix()
            assert any(problem.startswith(f"{name}: ") for problem in problems)
            assert redo == ([name] if path.suffix == ".tfrecord" else [])
            path.write_bytes(content)


def test_every_truncation_is_caught(dataset):
    for name in (FIRST, LAST, "metadata.json"):
        path = dataset / name
        content = path.read_bytes()
        for length in range(0, len(content), 1 if name == FIRST else 41):
            path.write_bytes(content[:length])
            problems, redo = found(dataset)
            assert problems
            assert redo == ([] if name == "metadata.json" else [name])
        path.write_bytes(content)
    assert found(dataset) == ([], [])


def test_all_that_is_wrong_is_reported(dataset):
    (dataset / FIRST).unlink()
    flip(dataset / shard_file(12, 0, 3), 8 * 100)
    shutil.copy(dataset / shard_file(11, 0, 3), dataset / shard_file(11, 2, 3))
    (dataset / "layer_10/activations-00003-of-00004.tfrecord").write_bytes(b"")
    (dataset / "layer_9").mkdir()
    (dataset / "layer_9/notes.txt").write_text("")
    (dataset / f"{LAST}.partial-0123456789abcdef").write_bytes(b"half")
    (dataset / "metadata.json.partial-0123456789abcdef").write_bytes(b"half")
    (dataset / "errors/rejected.jsonl").write_text('{"reason": "ragged_grid"}\n')
    problems, redo = found(dataset)
    again = "run the same command again, which redoes it"
    left = "left behind by a writer that was interrupted: delete it"
    names = [f"training/é{shard}.json#0000000{index}/0" for shard, index in [(0, 0), (2, 0)]]
    assert problems == [
        "errors: {'ragged_grid': 1} tasks in it, the metadata counts {'ragged_grid': 2} "
        f"rejected: {again}",
        "layer_10/activations-00001-of-00003.tfrecord: missing: " + again,
        "layer_10/activations-00003-of-00004.tfrecord: not listed in metadata.json: delete it",
        "layer_11/activations-00002-of-00003.tfrecord: 3 records, expected 2: " + again,
        f"layer_11/activations-00002-of-00003.tfrecord: record 0: sample '{names[0]}', "
        f"expected '{names[1]}': {again}",
        "layer_11/activations-00002-of-00003.tfrecord: record 1: sample "
        "'training/é0.json#00000001/0', expected 'training/é2.json#00000001/0': " + again,
        "layer_12/activations-00000-of-00003.tfrecord: record 0 at byte 0: the CRC of the data "
        "does not match: " + again,
        f"{LAST}.partial-0123456789abcdef: {left}",
        "layer_9/notes.txt: not listed in metadata.json: delete it",
        f"metadata.json.partial-0123456789abcdef: {left}",
    ]
    assert redo == [FIRST, shard_file(11, 2, 3), shard_file(12, 0, 3)]


def test_a_file_of_another_run_is_caught_by_its_checksum(dataset, tmp_path):
    """Sound records of the right samples, but activations of another seed."""
    other = tmp_path / "other"
    write_dataset(other, SHARDS, "none", "bfloat16", layers=(13,))
    shutil.copy(other / shard_file(13, 1, 3), dataset / MIDDLE)
    problems, redo = found(dataset)
    assert len(problems) == 1
    assert problems[0].startswith(f"{MIDDLE}: crc32c is ")
    assert redo == [MIDDLE]


def rewrite(path, change):
    """Frames the records of a file again after changing their data."""
    with open(path, "rb") as stream:
        records = [change(bytes(data)) for data in read_records(stream, path.name)]
    path.write_bytes(
        b"".join(frame_header(len(data)) + data + frame_footer(crc32c(data)) for data in records)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.replace(b"00000000", b"0000000X"), r"expected 'training/é1.json#00000"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), r"has other token_ids than expected"),
        (lambda data: data + b"\x98\x06\x01", "not encoded as this version encodes it"),
        (lambda data: b"nonsense", "reaches past the end|not the tag|wire type"),
    ],
    ids=["sample id", "token id", "unknown field", "no message"],
)
def test_records_with_right_checksums_and_wrong_content(dataset, change, message):
    rewrite(dataset / MIDDLE, change)
    problems, redo = found(dataset)
    assert len(problems) == 1
    assert problems[0].startswith(f"{MIDDLE}: record 0")
    assert re.search(message, problems[0])
    assert redo == [MIDDLE]


def test_layers_in_another_order_are_caught(dataset):
    path = dataset / shard_file(11, 0, 3)
    content = path.read_bytes()
    with open(path, "rb") as stream:
        first, second, _ = (len(data) + 16 for data in read_records(stream, "file"))
    second += first
    path.write_bytes(content[first:second] + content[:first] + content[second:])
    problems, redo = found(dataset)
    assert [problem.split(": ")[1] for problem in problems] == ["record 0", "record 1"]
    assert redo == [shard_file(11, 0, 3)]


def test_many_broken_records_of_a_file_are_counted(tmp_path):
    write_dataset(tmp_path, [[1] * 20], layers=(4,))
    path = tmp_path / shard_file(4, 0, 1)
    rewrite(path, lambda data: data[:-1])
    problems, _ = found(tmp_path)
    assert len(problems) == 6
    assert problems[0].startswith(f"{shard_file(4, 0, 1)}: 15 more records are wrong: ")


def replace_metadata(dataset, **changes):
    path = dataset / "metadata.json"
    metadata = replace(Metadata.from_json(path.read_text()), **changes)
    path.write_text(metadata.to_json())


def test_wrong_statistics_are_caught(dataset):
    statistics = dict(Metadata.from_json((dataset / "metadata.json").read_text()).statistics)
    mean = statistics[11].mean.copy()
    mean[5] = np.nextafter(mean[5], np.inf)
    statistics[11] = replace(statistics[11], mean=mean)
    replace_metadata(dataset, statistics=statistics)
    problems, redo = found(dataset)
    assert len(problems) == 1
    assert "statistics.11 are not those of the layer's files" in problems[0]
    assert redo == []


def test_a_sample_that_comes_twice_is_caught(tmp_path):
    write_dataset(tmp_path, [[4, 4], [4]], seeds=[0, 0])
    problems, redo = found(tmp_path)
    sample = make_samples([4], "last", seed=0)[0].sample_id
    assert len(problems) == 1
    assert f"sample {sample!r} of shard 0 comes again in this shard" in problems[0]
    assert redo == []


def test_metadata_that_someone_reformatted_is_caught(dataset):
    path = dataset / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    problems, _ = found(dataset)
    assert len(problems) == 1
    assert problems[0].startswith("metadata.json: not written as this version writes it")


@pytest.mark.parametrize("line", ["", "{", '{"reason": 3}', "[]", "[" * 100_000, '{"task": 1}'])
def test_dead_letters_that_cannot_be_read(dataset, line):
    path = dataset / "errors/rejected.jsonl"
    path.write_text(path.read_text() + line + "\n")
    problems, _ = found(dataset)
    assert len(problems) == 1
    assert problems[0].startswith("errors/rejected.jsonl: cannot be read: ")


def test_without_metadata_the_records_are_still_checked(dataset):
    (dataset / "metadata.json").unlink()
    (dataset / MIDDLE).unlink()
    flip(dataset / LAST, 8 * 60)
    problems, redo = found(dataset)
    assert [problem.split(": ")[0] for problem in problems] == [MIDDLE, LAST, "metadata.json"]
    assert "missing: the run has not finished" in problems[2]
    assert redo == [MIDDLE, LAST]


def test_a_folder_that_is_no_dataset(tmp_path):
    (tmp_path / "notes.txt").write_text("elsewhere")
    [problem] = verify(tmp_path).problems
    assert problem.file == "metadata.json"
    assert "this is no dataset" in problem.what


def test_without_metadata_runs_of_different_sizes_are_told_apart(dataset):
    (dataset / "metadata.json").unlink()
    shutil.copy(dataset / MIDDLE, dataset / shard_file(11, 0, 4))
    problems, redo = found(dataset)
    assert problems[0].startswith(".: files of runs with 3 and 4 shards")
    assert redo == []


def test_an_empty_folder_is_no_dataset(tmp_path):
    problems, redo = found(tmp_path)
    assert [problem.split(":")[0] for problem in problems] == ["metadata.json"]
    assert redo == []


def test_a_file_that_cannot_be_read(dataset):
    (dataset / MIDDLE).unlink()
    (dataset / MIDDLE).mkdir()
    problems, redo = found(dataset)
    assert problems[0].startswith(f"{MIDDLE}: cannot be read: ")
    assert redo == [MIDDLE]


def test_an_index_is_checked_if_there_is_one(dataset):
    reader = ActivationDataset(dataset)
    for shard in range(3):
        reader.index(shard)
    assert found(dataset) == ([], [])
    path = dataset / "index/shard-00001-of-00003.index"
    flip(path, 2000)
    (dataset / "index/shard-00000-of-00003.index").write_bytes(
        (dataset / "index/shard-00002-of-00003.index").read_bytes()
    )
    problems, redo = found(dataset)
    remedy = "delete it, or make it again with the command index"
    assert problems == [
        "index/shard-00000-of-00003.index: stale, made from other prompts or for another kind of "
        f"records: {remedy}",
        f"index/shard-00001-of-00003.index: damaged, its CRC does not match: {remedy}",
    ]
    assert redo == []


@dataclass(frozen=True)
class Deadly(LocalFolder):
    """A folder whose files kill every process that opens one, but the one that began."""

    def open(self, path):
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(path)


def test_a_killed_worker_is_an_error_and_no_hang(dataset):
    metadata = Metadata.from_json((dataset / "metadata.json").read_text())
    many = replace(metadata, shards=metadata.shards * 2000)  # none is ready before the worker is
    with pytest.raises(OSError, match="a worker process was killed"):
        _verify_shards(Deadly(dataset), many, workers=3)


@dataclass(frozen=True)
class Interrupted(LocalFolder):
    """A folder that cannot be read by the process that began; others note what they read."""

    def open(self, path):
        if multiprocessing.parent_process() is None:
            raise KeyboardInterrupt
        with (self.root / "opened").open("a") as stream:
            stream.write(f"{path}\n")
        return super().open(path)


def test_an_interruption_does_not_wait_for_all_shards(dataset):
    metadata = Metadata.from_json((dataset / "metadata.json").read_text())
    many = replace(metadata, shards=metadata.shards * 500)
    (dataset / "opened").touch()
    with pytest.raises(KeyboardInterrupt):
        _verify_shards(Interrupted(dataset), many, workers=2)
    assert len((dataset / "opened").read_text().splitlines()) < 500
