import json
from itertools import islice

import numpy as np
import pytest

from activation_dataset.frontends import grain_dataset

grain = pytest.importorskip("grain")


def numbers_of(batches):
    return [batch["numbers"].tolist() for batch in batches]


def test_epochs_follow_each_other(dataset, values, wanted):
    batches = grain_dataset(dataset, 10, 20, window=50)
    assert isinstance(batches, grain.IterDataset)
    both = wanted[0] + wanted[1]
    for _ in range(2):  # Each iterator starts from the beginning.
        found = list(islice(batches, len(both)))
        assert numbers_of(found) == both
        for batch in found:
            np.testing.assert_array_equal(batch["values"], values[batch["numbers"]])


@pytest.mark.parametrize("taken", [0, 3, 9, 12])
def test_a_checkpoint_goes_on_with_the_very_next_batch(dataset, wanted, taken):
    both = wanted[0] + wanted[1]
    iterator = iter(grain_dataset(dataset, 10, 20, window=50))
    assert numbers_of(islice(iterator, taken)) == both[:taken]
    state = json.loads(json.dumps(iterator.get_state()))
    other = iter(grain_dataset(dataset, 10, 20, window=50))
    next(other)
    other.set_state(state)
    assert numbers_of(islice(other, len(both) - taken)) == both[taken:]


def test_norms_that_leave_no_batch_are_an_error(dataset):
    with pytest.raises(ValueError, match="0 vectors of the epoch"):
        next(iter(grain_dataset(dataset, 10, 20, norms=(0, 0))))


def test_samples_are_a_data_source(dataset):
    samples = dataset[11]
    assert isinstance(samples, grain.sources.RandomAccessDataSource)
    shuffled = grain.MapDataset.source(samples).shuffle(seed=1).map(lambda each: each.sample_id)
    ids = [shuffled[place] for place in range(len(shuffled))]
    assert ids != sorted(ids)
    assert sorted(ids) == sorted(record.sample_id for record in dataset.records(11))
