import json

import numpy as np
import pytest

from activation_dataset import ActivationDataset, CorruptRecordError
from activation_dataset.format import shard_file
from tests.activation_dataset.synthetic import write_dataset

SHARDS = [[3, 40, 1, 17], [0, 7, 60], [12, 2]]
VECTORS = sum(map(sum, SHARDS))
HIDDEN = 8


@pytest.fixture(scope="module", params=["none", "last"])
def dataset(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    shards = SHARDS if request.param == "none" else [[5] * 70, [5] * 60, [5] * 12]
    write_dataset(path, shards, request.param, "bfloat16", HIDDEN)
    return ActivationDataset(path)


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch):
    monkeypatch.setattr("activation_dataset.reading.shards.CHUNK_BYTES", 300)


def all_values(dataset, layers=10, **options):
    return np.concatenate([block.values for block in list(dataset.blocks(layers, **options))])


def epoch(batches):
    """Return all numbers of an epoch, in order."""
    return np.concatenate([batch.numbers for batch in list(batches)])


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize("layers", [11, [12, 10]], ids=str)
@pytest.mark.parametrize("options", [{}, {"normalize": "sae_lens"}, {"dtype": "bits"}], ids=str)
def test_an_epoch_has_every_vector_once(dataset, layers, options, remote):
    if remote:
        dataset = ActivationDataset(f"file://{dataset.path}")
    values = all_values(dataset, layers, **options)
    batches = dataset.batches(layers, 10, window=40, drop_last=False, **options)
    assert len(batches) == -(-dataset.num_vectors // 10)
    found = list(batches)
    assert [len(batch) for batch in found[:-1]] == [10] * (len(batches) - 1)
    for batch in found:
        np.testing.assert_array_equal(batch.values, values[batch.numbers])
    numbers = np.concatenate([batch.numbers for batch in found])
    assert sorted(numbers) == list(range(dataset.num_vectors))


def test_epochs_and_seeds_have_other_orders(dataset):
    batches = dataset.batches(10, 10, window=40, drop_last=False)
    first, second = epoch(batches), epoch(batches)
    other = epoch(dataset.batches(10, 10, window=40, drop_last=False, seed=1))
    orders = {tuple(order.tolist()) for order in (first, second, other)}
    assert len(orders) == 3
    again = dataset.batches(10, 7, window=40, drop_last=False)
    np.testing.assert_array_equal(epoch(again), first)
    np.testing.assert_array_equal(epoch(again), second)
    assert again.epoch == 2


def test_vectors_are_mixed_within_windows_of_all_shards(dataset):
    numbers = epoch(dataset.batches(10, 10, window=80, drop_last=False))
    assert (np.diff(numbers) == 1).mean() < 0.1
    starts = [batch.samples for batch in dataset.metadata.shards]
    assert len(starts) == 3
    samples = dataset.locate(numbers[:80]).samples
    shards = np.searchsorted(np.cumsum(starts), samples, side="right")
    assert len(set(shards.tolist())) > 1


def test_drop_last(dataset):
    batches = dataset.batches(10, 50, window=40)
    assert [len(batch) for batch in batches] == [50] * (dataset.num_vectors // 50)
    assert batches.epoch == 1
    assert [len(batch) for batch in batches] == [50] * (dataset.num_vectors // 50)
    with pytest.raises(ValueError, match=r"batch_size is 5000, .*drop_last=False"):
        dataset.batches(10, 5000)


@pytest.mark.parametrize("world_size", [2, 5])
def test_readers_share_an_epoch(dataset, world_size):
    options = {"window": 30, "world_size": world_size}
    parts = [
        epoch(dataset.batches(10, 4, rank=rank, drop_last=False, **options))
        for rank in range(world_size)
    ]
    assert sorted(np.concatenate(parts)) == list(range(dataset.num_vectors))
    readers = [dataset.batches(10, 4, rank=rank, **options) for rank in range(world_size)]
    lengths = {len(list(reader)) for reader in readers}
    assert len(lengths) == 1
    assert lengths == {len(dataset.batches(10, 4, **options))}


@pytest.mark.parametrize("norms", [None, (0, 500)], ids=["all", "norms"])
def test_a_saved_state_goes_on_with_the_very_next_batch(dataset, norms):
    options = {"window": 40, "seed": 5, "norms": norms}
    batches = dataset.batches(10, 9, **options)
    states, wanted = [], []
    for _ in range(2):
        for batch in batches:
            wanted.append(batch.numbers.tolist())
            states.append(json.dumps(batches.state_dict()))
    for taken, state in enumerate(states, 1):
        resumed = dataset.batches(10, 9, **options)
        resumed.load_state_dict(json.loads(state))
        found = []
        while resumed.epoch < 2:
            found += [batch.numbers.tolist() for batch in resumed]
        assert found == wanted[taken:]
    again = dataset.batches(10, 9, **options)  # An iteration continues where the last one stopped.
    assert [next(iter(again)).numbers.tolist() for _ in range(4)] == wanted[:4]


def test_a_state_of_one_layer_continues_another_one(dataset):
    batches = dataset.batches(10, 9, window=40)
    next(iter(batches))
    other = dataset.batches(11, 9, window=40)
    other.load_state_dict(batches.state_dict())
    assert epoch(other).tolist() == epoch(batches).tolist()


def test_a_state_of_another_stream_is_refused(dataset):
    state = dataset.batches(10, 9, seed=1, window=40).state_dict()
    for options, message in [
        ({"seed": 2, "window": 40}, r"seed 1 \(here 2\)$"),
        ({"seed": 1, "window": 41}, r"window 40 \(here 41\)$"),
        ({"seed": 1, "window": 40, "rank": 1, "world_size": 2}, "rank 0 .*world_size 1 "),
        ({"seed": 1, "window": 40, "norms": (0, 1)}, "norms"),
        ({"seed": 1, "window": 40, "only": np.array([3])}, "only None"),
    ]:
        batches = dataset.batches(10, 9, drop_last=False, **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            batches.load_state_dict(state)
    dataset.batches([11, 12], 4, seed=1, window=40, dtype="bits").load_state_dict(state)
    with pytest.raises(ValueError, match="no epoch, row, rows, window"):
        dataset.batches(10, 9).load_state_dict({"stream": {}})


def test_only_some_vectors(dataset):
    rng = np.random.default_rng(0)
    values = all_values(dataset, [10, 11])
    for share in (0.03, 0.5, 1.0):
        only = np.flatnonzero(rng.random(dataset.num_vectors) < share)
        batches = dataset.batches([10, 11], 7, window=30, only=only, drop_last=False)
        assert len(batches) == -(-len(only) // 7)
        found = list(batches)
        for batch in found:
            np.testing.assert_array_equal(batch.values, values[batch.numbers])
        numbers = [number for batch in found for number in batch.numbers.tolist()]
        assert sorted(numbers) == only.tolist()


def test_only_norms_within_bounds(dataset):
    norms = np.linalg.norm(all_values(dataset, [10, 12]).astype(np.float64), axis=2)
    low, high = np.quantile(norms, [0.2, 0.8])
    batches = dataset.batches([10, 12], 7, window=30, norms=(low, high), drop_last=False)
    inside = (norms >= low) & (norms <= high)
    np.testing.assert_array_equal(np.sort(epoch(batches)), np.flatnonzero(inside.all(axis=1)))
    batches = dataset.batches([10, 12], 7, window=30, norms={12: (low, high)}, drop_last=False)
    np.testing.assert_array_equal(np.sort(epoch(batches)), np.flatnonzero(inside[:, 1]))
    with pytest.raises(TypeError, match="norms"):
        len(batches)


def test_arguments_that_cannot_be_met(dataset):
    for options, message in [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, "rank is 2"),
        ({"batch_size": 1, "world_size": 10_000}, "world_size is 10000, .*: use fewer readers"),
        ({"batch_size": 1, "only": np.array([2, 1])}, "not ascending"),
        ({"batch_size": 1, "only": np.array([], np.int64), "drop_last": False}, "only is empty"),
        ({"batch_size": 1, "only": np.array([1.5])}, "float64"),
        ({"batch_size": 1, "norms": {11: (0, 1)}}, "norms has site 11"),
        ({"batch_size": 1, "norms": (2, 1)}, "2 to 1"),
        ({"batch_size": 1, "dtype": "float16"}, "'float16' is not one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataset.batches(10, **options)  # type: ignore[arg-type]


def test_readers_that_leave_out_many_vectors_say_so(dataset, caplog):
    dataset.batches(10, dataset.num_vectors // 2 + 1)
    assert not caplog.records
    size = dataset.num_vectors // 5
    dataset.batches(10, size, world_size=2, window=30)
    given = sum(
        len(batch.numbers)
        for r in range(2)
        for batch in dataset.batches(10, size, rank=r, world_size=2, window=30)
    )
    assert f"leave out {100 * (1 - given / dataset.num_vectors):.0f}% of the vectors" in caplog.text


def test_a_fraction_is_not_cut_off(dataset):
    for options in ({"seed": 1.5}, {"window": 2.5}, {"rank": 0.0}):
        with pytest.raises(TypeError, match="integer"):
            dataset.batches(10, 5, **options)
    batches = dataset.batches(10, 5, seed=np.int64(3))
    json.dumps(batches.state_dict())
    for epoch in (-1, 1.5):
        with pytest.raises((TypeError, ValueError)):
            batches.set_epoch(epoch)


@pytest.mark.parametrize("norms", [(0, 1e-9), (0, 1e9)], ids=["none", "few"])
def test_norms_that_leave_no_batch_are_an_error(dataset, norms):
    size = 9 if norms[1] < 1 else dataset.num_vectors + 1
    with pytest.raises(ValueError, match=r"\d+ vectors of the epoch are within the norms"):
        list(dataset.batches(10, size, norms=norms))


def test_readers_keep_as_many_batches_with_another_batch_size(dataset):
    options = {"window": 30, "world_size": 3}
    states = []
    for rank in range(3):
        batches = dataset.batches(10, 9, rank=rank, **options)
        next(iter(batches))
        states.append(batches.state_dict())
    counts = set()
    for rank, state in enumerate(states):
        batches = dataset.batches(10, 7, rank=rank, **options)
        batches.load_state_dict(state)
        counts.add(len(list(batches)))
        assert batches.epoch == 1
    assert len(counts) == 1


@pytest.mark.parametrize("norms", [None, (0, 1e9)], ids=["all", "norms"])
@pytest.mark.parametrize("taken", [0, 5])
def test_parts_of_the_rest_of_an_epoch(dataset, norms, taken):
    options = {"window": 30, "norms": norms, "drop_last": False}
    batches = dataset.batches(10, 4, **options)
    for _ in zip(range(taken), batches, strict=False):
        pass
    state = batches.state_dict()
    wanted = epoch(batches)
    found = []
    for part in range(3):
        batches = dataset.batches(10, 4, **options)
        batches.load_state_dict(state)
        batches.take_part(part, 3)
        found += [batch.numbers for batch in batches]
        assert list(batches) == []
        with pytest.raises(ValueError, match=r"part None \(here \d of 3\)"):
            batches.load_state_dict(state)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.sort(wanted))


def test_a_damaged_record_is_never_given_out(tmp_path):
    write_dataset(tmp_path, SHARDS, "none", "bfloat16", HIDDEN)
    path = tmp_path / shard_file(10, 0, 3)
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # In the record of 40 tokens.
    path.write_bytes(content)
    dataset = ActivationDataset(tmp_path)
    damaged = set(range(3, 43))
    with pytest.raises(CorruptRecordError, match=r"layer_10/activations-00000.*record 1 at byte"):  # noqa: PT012
        for batch in dataset.batches(10, 4, window=20):
            assert not damaged & set(batch.numbers.tolist())
