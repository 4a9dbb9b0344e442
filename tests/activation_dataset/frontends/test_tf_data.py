import numpy as np
import pytest

from activation_dataset.frontends import tf_dataset

tf = pytest.importorskip("tensorflow")


def test_the_same_batches(dataset, values, wanted):
    batches = tf_dataset(dataset.batches(10, 20, window=50))
    assert batches.element_spec["values"].shape.as_list() == [None, 16]
    for epoch in range(2):
        found = list(batches)
        assert [batch["numbers"].numpy().tolist() for batch in found] == wanted[epoch]
        for batch in found:
            assert batch["values"].dtype == tf.float32
            np.testing.assert_array_equal(batch["values"], values[batch["numbers"].numpy()])


def test_bfloat16_several_layers_and_a_last_batch_that_is_smaller(dataset, values):
    options = {"dtype": "bfloat16", "drop_last": False}
    found = list(tf_dataset(dataset.batches([11, 10], 100, **options)).prefetch(2))
    assert [batch["values"].shape.as_list() for batch in found] == [[100, 2, 16], [92, 2, 16]]
    for batch in found:
        assert batch["values"].dtype == tf.bfloat16
        wide = tf.cast(batch["values"][:, 1], tf.float32)
        np.testing.assert_array_equal(wide, values[batch["numbers"].numpy()])
