import pickle
import shutil

import numpy as np
import pytest

from activation_dataset import ActivationDataset, DatasetError
from activation_dataset.storage_dtype import to_float32
from activation_dataset.tfrecord import CorruptRecordError
from tests.activation_dataset.synthetic import (
    make_prompts,
    make_rows,
    row_seed,
    stored,
    write_dataset,
)

SHARDS = [[3, 40, 1], [7], [12, 2]]
HIDDEN = 8


@pytest.fixture(params=[("last", "float32"), ("mean", "bfloat16"), ("none", "bfloat16")], ids=str)
def case(request, tmp_path):
    pooling, storage_dtype = request.param
    write_dataset(tmp_path, SHARDS, pooling, storage_dtype, HIDDEN)
    return tmp_path, pooling, storage_dtype


def expected(layer, shard, pooling, storage_dtype):
    """Return the prompt and the vectors [vectors, hidden] float32 of each sample of a shard."""
    prompts = make_prompts(SHARDS[shard], shard)
    rows = make_rows(prompts, pooling, HIDDEN, seed=row_seed(layer, shard))
    rows = to_float32(stored(rows, storage_dtype))
    counts = [each.num_tokens if pooling == "none" else 1 for each in prompts]
    return list(zip(prompts, np.split(rows, np.cumsum(counts)[:-1]), strict=True))


def assert_record(record, prompt, rows, pooling):
    assert (record.sample_id, record.task_id) == (prompt.sample_id, prompt.task_id)
    assert record.num_tokens == prompt.num_tokens
    kept = prompt.token_ids[-1:] if pooling == "last" else prompt.token_ids
    assert record.token_ids.dtype == np.int32
    np.testing.assert_array_equal(record.token_ids, kept)
    assert record.activation.dtype == np.float32
    assert record.activation.flags.aligned
    np.testing.assert_array_equal(record.activation, rows if pooling == "none" else rows[0])


def test_in_order(case):
    path, pooling, storage_dtype = case
    dataset = ActivationDataset(path)
    assert len(dataset) == 6
    assert dataset.layers == (10, 11, 12)
    for layer in dataset.layers:
        wanted = [
            each for shard in range(3) for each in expected(layer, shard, pooling, storage_dtype)
        ]
        for records in (dataset.records(layer), dataset[layer]):
            for record, (prompt, rows) in zip(records, wanted, strict=True):
                assert_record(record, prompt, rows, pooling)
        shard = [record.sample_id for record in dataset.records(layer, shard=2)]
        assert shard == [prompt.sample_id for prompt, _ in wanted[-2:]]


def test_any_sample(case):
    path, _, _ = case
    dataset = ActivationDataset(path)
    in_order = list(ActivationDataset(f"file://{path}").records(12))
    for index in (5, 0, 3, 4, 1, 2, -1, -6):
        found = dataset[12][index]
        assert found.sample_id == in_order[index].sample_id
        np.testing.assert_array_equal(found.stored, in_order[index].stored)
    part = dataset[12][1:6:2]
    assert [each.sample_id for each in part] == [each.sample_id for each in in_order[1:6:2]]


def test_an_absent_layer_or_index(tmp_path):
    write_dataset(tmp_path, SHARDS)
    dataset = ActivationDataset(tmp_path)
    with pytest.raises(KeyError, match="9"):
        next(dataset.records(9))
    for index in (6, -7):
        with pytest.raises(IndexError, match=r"is not in 0\.\.5"):
            dataset[10][index]
    for read in (dataset.records, dataset.blocks):
        with pytest.raises(IndexError, match=r"shard 3 is not in 0\.\.2"):
            next(read(10, shard=3))


def test_an_incomplete_folder_is_refused(tmp_path):
    write_dataset(tmp_path, SHARDS)
    (tmp_path / "metadata.json").unlink()
    with pytest.raises(DatasetError, match=r"has no metadata\.json"):
        ActivationDataset(tmp_path)
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere"):
        ActivationDataset(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="file is a file"):
        ActivationDataset(tmp_path / "file")


def layer_file(path, shard=0):
    return path / f"layer_11/activations-0000{shard}-of-00003.tfrecord"


def test_a_flipped_bit_is_an_error_not_a_value(tmp_path):
    write_dataset(tmp_path, SHARDS)
    content = bytearray(layer_file(tmp_path).read_bytes())
    content[len(content) // 2] ^= 1
    layer_file(tmp_path).write_bytes(content)
    dataset = ActivationDataset(tmp_path)
    with pytest.raises(CorruptRecordError, match=r"^layer_11/activations-00000-of-00003.tfrecord"):
        list(dataset.records(11))
    with pytest.raises(CorruptRecordError, match="record 1 at byte"):
        dataset[11][1]


@pytest.mark.parametrize("change", ["one record less", "one record more"])
def test_a_file_with_another_number_of_records_is_an_error(tmp_path, change):
    write_dataset(tmp_path, SHARDS)
    single = layer_file(tmp_path, shard=1).read_bytes()
    path = layer_file(tmp_path, shard=1)
    path.write_bytes(b"" if change == "one record less" else single + single)
    found = 0 if change == "one record less" else 2
    message = f"says 1 records, the file has {found}"
    with pytest.raises(CorruptRecordError, match=message):
        list(ActivationDataset(tmp_path).records(11))


def test_a_file_that_was_cut_short_is_an_error(tmp_path):
    write_dataset(tmp_path, SHARDS)
    content = layer_file(tmp_path).read_bytes()
    layer_file(tmp_path).write_bytes(content[:-5])
    dataset = ActivationDataset(tmp_path)
    assert dataset[11][1].num_tokens == 40
    with pytest.raises(CorruptRecordError, match=r"record 2 at byte .*: the file ends in"):
        dataset[11][2]
    with pytest.raises(CorruptRecordError, match="the file ends in"):
        list(dataset.blocks(11))


def test_a_dataset_without_its_prompts_says_so(tmp_path):
    write_dataset(tmp_path, SHARDS)
    (tmp_path / "prompts/prompts-00001-of-00003.tfrecord").unlink()
    dataset = ActivationDataset(tmp_path)
    assert dataset[11][0].num_tokens == 3
    with pytest.raises(DatasetError, match=r"^prompts/prompts-00001-of-00003.*verify") as found:
        dataset[11][3]
    assert f"verify {tmp_path} " in str(found.value)


EACH_READ = pytest.mark.parametrize(
    "read",
    [
        lambda dataset: list(dataset.records(10)),
        lambda dataset: list(dataset.blocks(10)),
        lambda dataset: list(dataset.batches(10, 2)),
        lambda dataset: dataset[10][0],
    ],
    ids=["records", "blocks", "batches", "sample"],
)


@EACH_READ
@pytest.mark.parametrize(
    ("content", "error"), [(None, DatasetError), (b"short", CorruptRecordError)], ids=str
)
def test_a_missing_or_truncated_file_is_named_with_advice(tmp_path, read, content, error):
    write_dataset(tmp_path, [[3, 4]])
    name = "layer_10/activations-00000-of-00001.tfrecord"
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for path in (str(tmp_path), f"file://{tmp_path}"):
        with pytest.raises(error, match=f"^{name}.*verify {path} .*run the job again") as found:
            read(ActivationDataset(path))
        assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)  # noqa: S301


@EACH_READ
def test_a_dataset_that_is_replaced_while_it_is_open_is_an_error(tmp_path, read, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write_dataset(tmp_path / "one", [[3, 4], [5]])
    monkeypatch.setattr("tests.activation_dataset.synthetic.row_seed", lambda *_: 7)
    write_dataset(tmp_path / "two", [[3, 4], [5]])  # Other vectors of the same tasks.
    dataset = ActivationDataset(tmp_path / "one")
    read(dataset)
    metadata = tmp_path / "one" / "metadata.json"
    metadata.write_bytes(metadata.read_bytes())  # The same content again.
    read(dataset)
    shutil.rmtree(tmp_path / "one")
    (tmp_path / "two").rename(tmp_path / "one")
    with pytest.raises(DatasetError, match="changed while it was open"):
        read(dataset)
