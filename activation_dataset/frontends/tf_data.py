"""Batches as a tf.data.Dataset."""

from __future__ import annotations

from typing import Any

from activation_dataset.reading.batches import Batches


def batch_dataset(batches: Batches) -> Any:
    """A tf.data.Dataset of batches; each time it is iterated it is the rest of an epoch.

    An element is a dict: `values`, [n, hidden] or [n, layers, hidden] of the batches' dtype;
    `numbers`, [n] int64, by which `dataset.locate` finds samples and tokens. tf.data may take
    batches before they are asked for (`prefetch`): then the batches' state is ahead as well.
    """
    import tensorflow as tf

    signature = {
        "values": tf.TensorSpec((None, *batches.shape[1:]), tf.as_dtype(batches.dtype)),
        "numbers": tf.TensorSpec((None,), tf.int64),
    }
    return tf.data.Dataset.from_generator(
        lambda: ({"values": batch.values, "numbers": batch.numbers} for batch in batches),
        output_signature=signature,
    )
