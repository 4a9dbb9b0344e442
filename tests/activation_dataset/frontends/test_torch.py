"""PyTorch front end. It runs in an environment with torch and without TensorFlow."""

import json
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from activation_dataset.frontends import torch_dataset

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def torch() -> Any:
    """The package, which is imported only if a test of this file runs."""
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


# A process of their own for forked workers, since a fork breaks threads of other libraries.
WORKERS = """
import json, sys
from torch.utils.data import DataLoader
from activation_dataset import ActivationDataset
from activation_dataset.frontends import torch_dataset

def numbers_of(batches):
    return [batch["numbers"].tolist() for batch in batches]

batches = torch_dataset(ActivationDataset(sys.argv[1]), 10, 5, window=50, drop_last=False)
shared = []
for epoch in range(2):
    batches.set_epoch(epoch)
    shared.append(numbers_of(DataLoader(batches, None, num_workers=2)))
batches.set_epoch(0)
stays = DataLoader(batches, None, num_workers=1, persistent_workers=True)
values = [batch["values"].tolist() for batch in DataLoader(batches, None, num_workers=1)]
print(json.dumps([shared, [numbers_of(stays) for epoch in range(2)], values]))
"""


def test_workers_share_an_epoch(dataset, values):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKERS, dataset.path],
        capture_output=True,
        check=True,
        text=True,
    )
    shared, stays, given = json.loads(run.stdout)
    orders = [[number for batch in epoch for number in batch] for epoch in shared]
    assert [sorted(order) for order in orders] == [list(range(192))] * 2
    assert orders[0] != orders[1]
    # A worker that stays goes on to the next epoch by itself.
    alone = dataset.batches(10, 5, window=50, drop_last=False)
    assert stays == [[batch.numbers.tolist() for batch in alone] for _ in range(2)]
    for numbers, batch in zip(stays[0], given, strict=True):
        np.testing.assert_array_equal(np.array(batch, np.float32), values[numbers])


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
