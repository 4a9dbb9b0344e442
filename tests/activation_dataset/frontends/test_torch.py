"""Tests of the PyTorch front end, in an environment with torch and without TensorFlow."""

import json
import pickle
import subprocess
import sys
from itertools import chain
from typing import Any

import numpy as np
import pytest

from activation_dataset.frontends import torch_dataset

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def torch() -> Any:
    """Import torch only if a test of this file runs."""
    import torch

    return torch


def numbers_of(batches):
    return [batch["numbers"].tolist() for batch in batches]


def test_a_loader_gives_the_same_batches(torch, dataset, values, wanted):
    batches = torch_dataset(dataset, 10, 20, window=50)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    assert len(loader) == len(batches) == 9
    for epoch in range(2):
        found = list(loader)
        assert numbers_of(found) == wanted[epoch]
        for batch in found:
            assert batch["values"].dtype == torch.float32
            expected = torch.from_numpy(values[batch["numbers"].numpy()])
            assert torch.equal(batch["values"], expected)


def test_bfloat16_and_several_layers(torch, dataset, values):
    for batch in torch_dataset(dataset, [10, 12], 20, dtype="bfloat16"):
        assert (batch["values"].dtype, batch["values"].shape) == (torch.bfloat16, (20, 2, 16))
        expected = torch.from_numpy(values[batch["numbers"].numpy()])
        assert torch.equal(batch["values"][:, 0].float(), expected)


COMMON = """
import json, sys
from itertools import islice
from torch.utils.data import DataLoader
from activation_dataset import ActivationDataset
from activation_dataset.frontends import torch_dataset

dataset = ActivationDataset(sys.argv[1])
options = json.loads(sys.argv[2])

def numbers_of(batches):
    return [batch["numbers"].tolist() for batch in batches]
"""


def found_by(code, dataset, **options):
    """Run code in a new process, because forks could break threads, and return what it prints."""
    command = [sys.executable, "-W", "ignore", "-c", COMMON + code, dataset.path]
    run = subprocess.run(
        [*command, json.dumps(options)], capture_output=True, check=False, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def batches_of(epoch):
    """Sort the batches of an epoch, because workers yield them in another order."""
    return sorted(map(tuple, epoch))


LENGTHS = """
found = []
for workers in options.pop("workers"):
    loader = DataLoader(torch_dataset(dataset, 10, **options), None, num_workers=workers)
    found.append([[len(loader), numbers_of(loader)] for epoch in range(2)])
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 5, "drop_last": False},
        {"batch_size": 40, "drop_last": True},  # fewer batches than workers
        {"batch_size": 5, "drop_last": True, "rank": 1, "world_size": 2},
    ],
    ids=str,
)
def test_an_epoch_is_the_same_with_any_number_of_workers(dataset, options):
    options = {"window": 50, **options}
    alone = dataset.batches(10, **options)
    wanted = [[batch.numbers.tolist() for batch in alone] for _ in range(2)]
    assert batches_of(wanted[0]) != batches_of(wanted[1])
    for epochs in found_by(LENGTHS, dataset, workers=[0, 1, 2, 3, 5], **options):
        for (length, found), expected in zip(epochs, wanted, strict=True):
            assert length == len(found)
            assert batches_of(found) == batches_of(expected)


EPOCHS = """
import torch

def epochs(again=False, **how):
    batches = torch_dataset(dataset, 10, 20, window=50)
    loader = DataLoader(batches, None, num_workers=2, **how)
    for epoch in range(3):
        if again:
            torch.manual_seed(0)
        if epoch == 2:
            batches.set_epoch(0)
        yield numbers_of(loader)
    for batch in loader:
        break  # Leaves the loop early.
    yield numbers_of(loader)

if __name__ == "__main__":
    kept = {"persistent_workers": True}
    print(json.dumps([list(epochs(**how)) for how in ({}, {"again": True}, kept)]))
"""


def test_the_order_depends_on_the_number_of_workers_only_from_two_on(dataset):
    options = {"batch_size": 5, "window": 50, "workers": [0, 1, 2, 2, 3]}
    none, one, two, again, three = found_by(LENGTHS, dataset, **options)
    assert none == one
    assert two == again
    assert len({json.dumps(each) for each in (none, two, three)}) == 3


def test_each_iteration_of_workers_is_another_epoch(dataset):
    alone = dataset.batches(10, 20, window=50)
    wanted = [batches_of(batch.numbers.tolist() for batch in alone) for _ in range(3)]
    for epochs in found_by(EPOCHS, dataset):
        assert list(map(batches_of, epochs)) == [wanted[0], wanted[1], wanted[0], wanted[2]]


def test_spawned_workers(torch, dataset, wanted):
    batches = torch_dataset(dataset, 10, 20, window=50)
    loader: Any = torch.utils.data.DataLoader(
        batches, batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    for epoch in wanted:
        assert numbers_of(loader) == epoch
    with pytest.raises(RuntimeError, match="StatefulDataLoader"):
        batches.state_dict()
    batches.set_epoch(2)
    assert batches.state_dict()["epoch"] == 2


RESUMED = """
batches = torch_dataset(dataset, 10, **options)
list(islice(batches, 2))
state = json.loads(json.dumps(batches.state_dict()))
found = []
for workers in (0, 1, 3):
    batches = torch_dataset(dataset, 10, **options)
    batches.load_state_dict(state)
    loader = DataLoader(batches, None, num_workers=workers)
    found.append([numbers_of(loader), numbers_of(loader)])
print(json.dumps(found))
"""


@pytest.mark.parametrize("norms", [None, (0, 1e9)], ids=["all", "norms"])
def test_workers_continue_a_loaded_state(dataset, norms):
    options = {"batch_size": 20, "window": 50, "drop_last": False, "norms": norms}
    alone = dataset.batches(10, **options)
    wanted = [[number for batch in alone for number in batch.numbers.tolist()] for _ in range(2)]
    for rest, following in found_by(RESUMED, dataset, **options):
        assert sorted(chain(*rest)) == sorted(wanted[0][40:])
        assert sorted(chain(*following)) == sorted(wanted[1])


STATEFUL = """
from torchdata.stateful_dataloader import StatefulDataLoader

def loader():
    batches = torch_dataset(dataset, 10, 20, window=50)
    return StatefulDataLoader(batches, batch_size=None, num_workers=options["workers"])

found = []
for taken in (4, 9):
    first, second = loader(), loader()
    iterator = iter(first)
    before = numbers_of(islice(iterator, taken)) + (numbers_of(iterator) if taken == 9 else [])
    second.load_state_dict(first.state_dict())
    found.append([before, numbers_of(second) if taken < 9 else [], numbers_of(second)])
print(json.dumps(found))
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_continues_in_the_middle_of_an_epoch(dataset, wanted, workers):
    pytest.importorskip("torchdata.stateful_dataloader")
    for before, rest, following in found_by(STATEFUL, dataset, workers=workers):
        assert batches_of(before + rest) == batches_of(wanted[0])
        assert batches_of(following) == batches_of(wanted[1])


def test_a_state_is_saved_and_restored(dataset, wanted):
    batches = torch_dataset(dataset, 10, 20, window=50)
    for _, _ in zip(range(3), batches, strict=False):
        pass
    state = batches.state_dict()
    resumed = torch_dataset(dataset, 10, 20, window=50)
    resumed.load_state_dict(state)
    copied = pickle.loads(pickle.dumps(resumed))  # noqa: S301
    assert numbers_of(resumed) == numbers_of(copied)
    assert numbers_of(resumed) == wanted[1]


def test_records_are_a_map_style_dataset(torch, dataset):
    loader: Any = torch.utils.data.DataLoader(
        dataset[11],
        batch_size=None,
        sampler=[5, 0, 3],
        num_workers=1,
        multiprocessing_context="spawn",
    )
    for record, index in zip(loader, (5, 0, 3), strict=True):
        expected = dataset[11][index]
        assert record.sample_id == expected.sample_id
        np.testing.assert_array_equal(record.activation, expected.activation)
