from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from activation_dataset.frontends import DeviceBatches


def numbers_of(batches):
    return [batch.numbers.tolist() for batch in batches]


@pytest.mark.parametrize("ahead", [0, 2, 100])
def test_the_same_batches_on_a_device(dataset, values, wanted, ahead):
    batches = DeviceBatches(dataset.batches(10, 20, window=50), ahead=ahead)
    assert len(batches) == 9
    for epoch in range(2):
        found = list(batches)
        assert numbers_of(found) == wanted[epoch]
        # The reuse of host memory must not change values that were sent.
        for batch in found:
            assert isinstance(batch.values, jax.Array)
            np.testing.assert_array_equal(np.asarray(batch.values), values[batch.numbers])


def test_bfloat16_on_a_chosen_device(dataset, values):
    sharding = SingleDeviceSharding(jax.devices()[0])
    for batch in DeviceBatches(dataset.batches([12, 10], 20, dtype="bfloat16"), sharding):
        assert batch.values.dtype == jnp.bfloat16
        assert batch.values.shape == (20, 2, 16)
        assert batch.values.sharding == sharding
        np.testing.assert_array_equal(
            np.asarray(batch.values[:, 1].astype(jnp.float32)), values[batch.numbers]
        )


@pytest.mark.parametrize("taken", [0, 1, 4, 9])
def test_a_state_is_that_of_the_last_batch_given_out(dataset, wanted, taken):
    batches = DeviceBatches(dataset.batches(10, 20, window=50))
    assert numbers_of(islice(batches, taken)) == wanted[0][:taken]
    resumed = DeviceBatches(dataset.batches(10, 20, window=50))
    resumed.load_state_dict(batches.state_dict())
    rest = wanted[0][taken:] or wanted[1]
    assert numbers_of(resumed) == rest
    assert numbers_of(batches) == rest
