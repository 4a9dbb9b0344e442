import numpy as np
import pytest

from activation_dataset import ActivationDataset, CorruptRecordError
from activation_dataset.format import shard_file
from tests.activation_dataset.synthetic import write_dataset

SHARDS = [[3, 40, 1, 17], [0, 7, 200], [12, 2]]
HIDDEN = 8


@pytest.fixture(params=[1, 100, 1 << 20], ids="chunks of {}".format)
def chunk_bytes(request, monkeypatch):
    """Set the size of chunks. With 1, readers read every record separately, and in pieces."""
    monkeypatch.setattr("activation_dataset.reading.shards.CHUNK_BYTES", request.param)
    monkeypatch.setattr("activation_dataset.reading.layer_file._PIECE_BYTES", 16 * HIDDEN)
    return request.param


def shards_of(pooling):
    return SHARDS if pooling == "none" else [[3, 40, 1, 17], [5, 7, 200], [12, 2]]


@pytest.mark.parametrize(
    ("pooling", "storage_dtype", "remote"),
    [
        ("last", "float32", False),
        ("mean", "bfloat16", False),
        ("none", "bfloat16", False),
        ("none", "float32", True),
    ],
)
@pytest.mark.usefixtures("chunk_bytes")
def test_blocks_hold_what_the_records_hold(tmp_path, pooling, storage_dtype, remote):
    write_dataset(tmp_path, shards_of(pooling), pooling, storage_dtype, HIDDEN)
    dataset = ActivationDataset(f"file://{tmp_path}" if remote else tmp_path)
    for layers in (10, 12, [10], [12, 10]):
        chosen = [layers] if isinstance(layers, int) else layers
        records = [
            [record.activation.reshape(-1, HIDDEN) for record in dataset.records(layer)]
            for layer in chosen
        ]
        wanted = np.stack([np.concatenate(each) for each in records], axis=1)
        blocks = list(dataset.blocks(layers))
        found = np.concatenate([block.values for block in blocks])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted[:, 0] if layers in (10, 12) else wanted)
        numbers = np.concatenate([block.numbers for block in blocks])
        np.testing.assert_array_equal(numbers, np.arange(dataset.num_vectors))


def test_blocks_that_are_kept_are_not_overwritten(tmp_path):
    write_dataset(tmp_path, [[50] * 40], "none", "bfloat16", 1024, layers=(3,))
    dataset = ActivationDataset(tmp_path)
    copies = [block.values.copy() for block in dataset.blocks(3)]
    kept = [block.values[::2] for block in dataset.blocks(3)]
    assert len(kept) > 4
    for copy, values in zip(copies, kept, strict=True):
        np.testing.assert_array_equal(copy[::2], values)


@pytest.mark.parametrize("pooling", ["last", "none"])
def test_a_flipped_bit_in_any_byte_is_an_error(tmp_path, pooling, chunk_bytes):
    write_dataset(tmp_path, [[3, 2]], pooling, "bfloat16", 2, layers=(10,))
    dataset = ActivationDataset(tmp_path)
    path = tmp_path / shard_file(10, 0, 1)
    content = path.read_bytes()
    split = int(dataset.index(0).record_starts[0, 1])
    for byte in range(len(content)):
        broken = bytearray(content)
        broken[byte] ^= 1 << byte % 8
        path.write_bytes(broken)
        record = int(byte >= split)
        good = 0
        with pytest.raises(CorruptRecordError, match=f"tfrecord: record {record} at byte"):  # noqa: PT012
            for block in dataset.blocks(10):
                good += len(block)
        sound = record * (3 if pooling == "none" else 1)
        assert good == sound or (good == 0 and chunk_bytes > 1)
