"""Tests of batches from a fake Cloud Storage with wrong responses or changes during a read."""

from __future__ import annotations

import shutil
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from activation_dataset import ActivationDataset, CorruptRecordError
from activation_dataset.damage import DatasetError
from activation_dataset.format import shard_file
from activation_dataset.index import keep_indexes
from benchmarks.stand_in import BUCKET, Server, Store
from tests.activation_dataset.synthetic import write_dataset

LENGTHS = [[40, 17, 60], [70, 12]]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Bucket of a small dataset with indexes. All later reads request layer files."""
    write_dataset(tmp_path, LENGTHS, "none", "bfloat16", 32)
    dataset = ActivationDataset(tmp_path)
    keep_indexes(dataset.folder, dataset.metadata)
    monkeypatch.setattr("activation_dataset.reading.shards.CHUNK_BYTES", 1 << 10)
    store = Store(speed=1e9, latency=0.0, folder=tmp_path)
    running = Server(store)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{running.server_port}")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    yield store
    running.shutdown()
    thread.join()


def opened() -> ActivationDataset:
    return ActivationDataset(f"gs://{BUCKET}")


def order(dataset: ActivationDataset, **options: int) -> list[int]:
    batches = dataset.batches(10, 16, window=60, drop_last=False, **options)
    return np.concatenate([batch.numbers for batch in batches]).tolist()


def test_neither_the_store_nor_the_memory_changes_the_order(store: Store):
    assert store.folder
    local = order(ActivationDataset(store.folder))
    assert order(opened()) == order(opened(), read_memory=1) == local


def test_an_answer_that_asks_to_try_again_is_tried_again(store: Store):
    dataset = opened()
    batches = dataset.batches(10, 16, window=60, drop_last=False)
    store.faults.extend(["503", "cut"])
    assert sorted(np.concatenate([batch.numbers for batch in batches]).tolist()) == [*range(199)]
    assert not store.faults


@pytest.mark.parametrize(
    ("fault", "error"), [("short", CorruptRecordError), ("whole", OSError)], ids=str
)
def test_an_answer_of_other_bytes_gives_no_batch(store: Store, fault: str, error: type[Exception]):
    batches = opened().batches(10, 16, window=1, drop_last=False)
    store.faults = deque([fault] * 8)
    with pytest.raises(error, match="layer_10/"):
        list(batches)


@pytest.mark.parametrize("place", ["layer_10/activations", "prompts/prompts"])
@pytest.mark.parametrize("kept", [None, 0.5, 0], ids=["missing", "cut", "empty"])
def test_a_missing_or_truncated_file_is_named_with_advice(
    store: Store, place: str, kept: float | None
):
    assert store.folder
    path = store.folder / f"{place}-00001-of-00002.tfrecord"
    content = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(content[: int(kept * len(content))])
    if place.startswith("prompts"):
        shutil.rmtree(store.folder / "index")
    error = DatasetError if kept is None else (CorruptRecordError, DatasetError)
    for read in (
        lambda: list(opened().blocks(10)),
        lambda: order(opened()),
        lambda: opened()[10][4],
    ):
        with pytest.raises(error, match=f"^{place}.*verify gs://{BUCKET} .*run the job again"):
            read()


def test_a_file_that_changes_is_named(store: Store):
    assert store.folder
    batches = opened().batches(10, 16, window=60, drop_last=False)
    changed = store.folder / shard_file(10, 1, 2)
    content = bytearray(changed.read_bytes())
    content[-9] ^= 1
    changed.write_bytes(content)
    with pytest.raises(DatasetError, match="changed"):
        list(batches)
