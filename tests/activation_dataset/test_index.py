import logging

import numpy as np
import pytest

from activation_dataset import ActivationDataset, DatasetError
from activation_dataset.format import index_file
from activation_dataset.index import decode_index, encode_index, keep_indexes
from tests.activation_dataset.synthetic import write_dataset

SHARDS = [[3, 40, 1], [7], [12, 0, 2]]


@pytest.fixture(params=["last", "mean", "none"])
def path(request, tmp_path):
    shards = SHARDS[:2] if request.param != "none" else SHARDS
    write_dataset(tmp_path, shards, request.param, widths={11: 300})
    return tmp_path


def test_it_says_where_records_and_activations_lie(path):
    dataset = ActivationDataset(path)
    for shard, entry in enumerate(dataset.metadata.shards):
        index = dataset.index(shard)
        assert index.widths == [8, 300]
        for kind, layer in enumerate((10, 11)):
            content = (path / entry.files[layer].path).read_bytes()
            assert index.record_starts[kind, -1] == len(content)
            for number, record in enumerate(dataset.records(layer, shard)):
                stored = record.stored.tobytes()
                start = int(index.activation_starts[kind, number])
                assert content[start : start + len(stored)] == stored


def test_it_is_kept_and_used(path, caplog):
    caplog.set_level(logging.INFO)
    first = ActivationDataset(path).index(0)
    assert "building index/shard-00000" in caplog.text
    caplog.clear()
    (path / ActivationDataset(path).metadata.shards[0].prompts.path).unlink()
    second = ActivationDataset(path).index(0)
    assert second is not first
    for name in ("record_starts", "activation_starts", "token_ends", "token_ids", "cells"):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
    assert (second.sample_ids, second.task_ids) == (first.sample_ids, first.task_ids)
    assert caplog.text == ""


@pytest.mark.parametrize("other", ["", "prompts of another run"], ids=["empty", "other"])
def test_wrong_prompts_do_not_leave_an_index_that_outlives_them(tmp_path, other):
    path = tmp_path / "one"
    entry = write_dataset(path, [[3, 4]]).shards[0].prompts
    write_dataset(tmp_path / "two", [[4, 5]], seeds=[1])
    content = (path / entry.path).read_bytes()
    wrong = (tmp_path / "two" / entry.path).read_bytes() if other else b""
    (path / entry.path).write_bytes(wrong)
    with pytest.raises(DatasetError, match=f"^{entry.path} .*metadata.json.*verify {path}"):
        ActivationDataset(path).index(0)
    (path / entry.path).write_bytes(content)
    assert ActivationDataset(path).index(0).token_ends.tolist() == [3, 7]


def test_a_flipped_bit_in_any_byte_is_caught(tmp_path):
    write_dataset(tmp_path, [[1, 2]])
    data = encode_index(ActivationDataset(tmp_path).index(0), "key")
    decode_index(data, "key")
    for byte in range(len(data)):
        broken = bytearray(data)
        broken[byte] ^= 1 << byte % 8
        with pytest.raises(ValueError, match="CRC"):
            decode_index(bytes(broken), "key")
    with pytest.raises(ValueError, match="stale"):
        decode_index(data, "another key")


def test_nothing_is_added_to_a_remote_folder(tmp_path):
    pytest.importorskip("fsspec")
    write_dataset(tmp_path, SHARDS, "none")
    assert ActivationDataset(f"file://{tmp_path}")[10][1].num_tokens == 40
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("url", ["", "file://"])
def test_missing_and_damaged_ones_are_built_on_request(path, url):
    dataset = ActivationDataset(f"{url}{path}")
    shards = len(dataset.metadata.shards)
    (path / "index").mkdir()  # A bucket has no folders.
    assert keep_indexes(dataset.folder, dataset.metadata) == shards
    assert keep_indexes(dataset.folder, dataset.metadata) == 0
    (path / index_file(0, shards)).write_bytes(b"damaged")
    assert keep_indexes(dataset.folder, dataset.metadata) == 1
