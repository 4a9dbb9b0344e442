import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest

from activation_dataset.canonical_json import sealed_text
from activation_dataset.checksum import crc32c, to_text
from activation_dataset.format import prompts_file, shard_file
from activation_dataset.metadata import Metadata
from activation_dataset.prompts import read_prompts, write_prompts
from activation_dataset.sites import HookPoint
from activation_dataset.tfrecord import frame_footer, frame_header, read_records
from activation_dataset.verify import verify
from tests.activation_dataset.synthetic import make_prompts, write_dataset

SHARDS = [[3, 40, 1], [7], [12, 2]]
FIRST, MIDDLE, LAST = (shard_file(layer, 1, 3) for layer in (10, 11, 12))
AGAIN = "run the same command again to rewrite the file"


REJECTED_TASK = '{"kind": "task", "reason": "ragged_grid", "samples": 0, "task_id": "a"}\n'


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path, SHARDS, "none", "bfloat16", rejected={"ragged_grid": 2})
    errors = tmp_path / "errors"
    errors.mkdir()
    (errors / "rejected.jsonl").write_text(REJECTED_TASK * 2)
    for name in ("run.json", "claim.json", "certificate.json", "README.md", "notes.txt"):
        (tmp_path / name).write_text("{}")
    for name in ("manifests/prompts-00000-of-00003.json", "index/shard-00000-of-00003.index"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    return tmp_path


def problems(path, records=False):
    return [str(problem) for problem in verify(path, records).problems]


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("pooling", "storage_dtype"), [("last", "float32"), ("mean", "bfloat16"), ("none", "float32")]
)
def test_a_sound_dataset(tmp_path, pooling, storage_dtype):
    hook_points: tuple[HookPoint, ...] = ("mlp_out", "resid_post")
    metadata = write_dataset(
        tmp_path, SHARDS, pooling, storage_dtype, layers=(3,), hook_points=hook_points
    )
    for records in (False, True):
        report = verify(tmp_path, records)
        assert report.problems == ()
        assert report.files == 9
        entries = [entry for shard in metadata.shards for entry in shard.all_files]
        assert report.bytes == sum(entry.bytes for entry in entries)


def test_other_files_are_left_alone_and_a_url_is_verified_too(dataset):
    assert problems(dataset) == problems(dataset, records=True) == []
    flip(dataset / MIDDLE, 400)
    assert len(problems(f"file://{dataset}")) == 1


def test_flipped_bits_and_cuts_anywhere_are_caught(dataset):
    rng = np.random.default_rng(0)
    files = [*dataset.rglob("*.tfrecord"), dataset / "metadata.json"]
    assert len(files) == 13
    for path in files:
        content = path.read_bytes()
        for bit in rng.integers(0, 8 * len(content), 25).tolist():
            for change, place in ((flip, bit), (os.truncate, bit // 8)):
                change(path, place)
                (problem,) = problems(dataset)
                assert problem.startswith(f"{path.relative_to(dataset).as_posix()}: ")
                path.write_bytes(content)


def test_all_problems_are_reported(dataset):
    (dataset / FIRST).unlink()
    (dataset / prompts_file(2, 3)).unlink()
    (dataset / LAST).unlink()
    (dataset / LAST).mkdir()
    flip(dataset / shard_file(12, 0, 3), 8 * 100)
    (dataset / shard_file(11, 2, 3)).write_bytes(b"short")
    (dataset / "layer_10/activations-00003-of-00004.tfrecord").write_bytes(b"")
    (dataset / "layer_9").mkdir()
    (dataset / "layer_9/notes.txt").write_text("")
    (dataset / f"{MIDDLE}.partial-0123456789abcdef").write_bytes(b"half")
    sample = REJECTED_TASK.replace("task", "sample").replace("0", "7")
    rejected = "errors/rejected.jsonl"
    (dataset / rejected).write_text(REJECTED_TASK + sample)
    expected = [
        rf"{rejected}: has {{'ragged_grid': 1}} rejected tasks, .* {{'ragged_grid': 2}}: {AGAIN}",
        rf"{rejected}: has {{'ragged_grid': 7}} rejected samples, .* says {{}}: {AGAIN}",
        f"{FIRST}: missing: {AGAIN}",
        "layer_10/activations-00003-of-00004.tfrecord: not listed in metadata.json: delete it",
        f"{MIDDLE}.partial-0123456789abcdef: partial file of an interrupted writer: delete it",
        rf"{shard_file(11, 2, 3)}: has 5 bytes, metadata.json says \d+: {AGAIN}",
        rf"{shard_file(12, 0, 3)}: has CRC32C \S+, metadata.json says \S+: {AGAIN}",
        f"{LAST}: missing: {AGAIN}",
        "layer_9/notes.txt: not listed in metadata.json: delete it",
        f"{prompts_file(2, 3)}: missing: {AGAIN}",
    ]
    for records in (False, True):
        found = problems(dataset, records)
        assert len(found) == len(expected)
        for problem, pattern in zip(found, expected, strict=True):
            assert re.fullmatch(pattern, problem)


def test_a_file_that_cannot_be_read(dataset, monkeypatch):
    (dataset / MIDDLE).chmod(0)
    monkeypatch.setattr("activation_dataset.verify.crc32c_of_stream", _unreadable)
    assert f"{MIDDLE}: cannot be read: broken disk: {AGAIN}" in problems(dataset)


def _unreadable(stream):
    raise OSError("broken disk")


@pytest.mark.parametrize("line", ["[]", '{"task": 1}', "[" * 100_000])
def test_rejected_tasks_that_cannot_be_read(dataset, line):
    path = dataset / "errors/rejected.jsonl"
    path.write_text(path.read_text() + line + "\n")
    (problem,) = problems(dataset)
    assert problem.startswith("errors/rejected.jsonl: cannot be read: ")


@pytest.mark.parametrize("name", ["truncated_tokens", "unknown_cell_samples"])
def test_prompts_that_are_not_those_counted(tmp_path, name):
    def truncated(lengths, seed):
        return [
            replace(each, truncated_tokens=9, cells=np.full_like(each.cells, -2))
            for each in make_prompts(lengths, seed)
        ]

    write_dataset(tmp_path, [[3], [4]], prompts_of=truncated)
    assert problems(tmp_path, records=True) == []
    path = tmp_path / "metadata.json"
    metadata = Metadata.from_json(path.read_text())
    stored = getattr(metadata.counts, name)
    counts = replace(metadata.counts, **{name: stored - 1})
    path.write_text(replace(metadata, counts=counts).to_json())
    assert problems(tmp_path) == []
    (problem,) = problems(tmp_path, records=True)
    assert problem.startswith(f"metadata.json: counts.{name} is {stored - 1}, but the prompts")


def test_without_metadata(dataset, tmp_path_factory):
    (dataset / "metadata.json").unlink()
    assert problems(dataset) == [
        "metadata.json: missing, the run is incomplete: run the same command again"
    ]
    (problem,) = problems(tmp_path_factory.mktemp("empty"))
    assert problem.startswith("metadata.json: missing, not a dataset: give the --output_dir")


# Bugs of a writer: wrong records with valid checksums.


def accept(dataset, name):
    """Update the size and CRC32C of a changed file in the metadata."""
    metadata = json.loads((dataset / "metadata.json").read_text())
    content = (dataset / name).read_bytes()
    for shard in metadata["batches"]:
        for entry in (shard["prompts"], *shard["files"].values()):
            if entry["path"] == name:
                entry |= {"bytes": len(content), "crc32c": to_text(crc32c(content))}
    del metadata["metadata_sha256"]
    (dataset / "metadata.json").write_text(sealed_text(metadata, "metadata_sha256"))


def rewrite(dataset, name, change):
    """Apply a function to the list of the data of all records, and rewrite the file."""
    with open(dataset / name, "rb") as stream:
        records = change([bytes(data) for data in read_records(stream, name)])
    (dataset / name).write_bytes(
        b"".join(frame_header(len(data)) + data + frame_footer(crc32c(data)) for data in records)
    )
    accept(dataset, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: [data[1], data[0], data[2]],
            "record 0 .* sample is '.*1/0', but the prompts",
        ),
        (lambda data: data[:2], "record 2 .* the file ends, but the prompts have 3 records"),
        (lambda data: [*data, data[2]], "record 3 .* the prompts have only 3 records"),
        (
            lambda data: [data[0], b"nonsense", data[2]],
            "record 1 at byte .* not a record of this format",
        ),
        (
            lambda data: [data[0][:-1] + bytes([data[0][-1] ^ 1]), *data[1:]],
            "record 0 .*: token_ids differs from the prompt",
        ),
    ],
    ids=["order", "fewer", "more", "no record", "token"],
)
def test_records_that_are_not_those_of_the_prompts(dataset, change, message):
    name = shard_file(11, 0, 3)
    rewrite(dataset, name, change)
    assert problems(dataset) == []
    (problem,) = problems(dataset, records=True)
    assert problem.startswith(f"{name}: ")
    assert re.search(message, problem)


def test_values_that_do_not_fit_the_statistics(dataset):
    def scaled(records):
        values = np.frombuffer(records[1], np.uint8).copy()
        values[40:200] ^= 1 << 6  # In the vectors.
        return [records[0], values.tobytes(), *records[2:]]

    rewrite(dataset, shard_file(11, 0, 3), scaled)
    assert problems(dataset) == []
    found = problems(dataset, records=True)
    assert found
    assert all(problem.startswith("metadata.json: statistics.11: ") for problem in found)


def test_prompts_that_are_not_those_of_the_records(dataset):
    name = prompts_file(0, 3)
    with open(dataset / name, "rb") as stream:
        prompts = list(read_prompts(stream, name))
    with open(dataset / name, "wb") as stream:
        write_prompts(stream, prompts[:2], 0, 3)
    accept(dataset, name)
    found = problems(dataset, records=True)
    assert len(found) == 4
    assert all("the prompts have only 2 records" in problem for problem in found[:3])
    assert found[3].startswith(
        f"{name}: has 2 prompts with 43 tokens, metadata.json says 3 with 44"
    )


def test_a_repeated_sample(tmp_path):
    write_dataset(tmp_path, [[4, 4], [4]], seeds=[0, 0])
    assert problems(tmp_path) == []
    sample = make_prompts([4])[0].sample_id
    (problem,) = problems(tmp_path, records=True)
    assert f"sample {sample!r} is also in shard 0" in problem
