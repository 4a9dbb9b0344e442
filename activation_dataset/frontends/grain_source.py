"""Batches for Grain. (`activation_dataset.reading.samples.Samples` is a data source as it is.)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from activation_dataset.reading.batches import Batches
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reading.vectors import Vectors
from activation_dataset.sites import Site


def batch_dataset(
    dataset: ActivationDataset, layers: Site | Sequence[Site], batch_size: int, **options: Any
) -> Any:
    """A grain.IterDataset of shuffled batches without end, epoch after epoch.

    An element is a dict: `values`, [batch_size, hidden] or [batch_size, layers, hidden]; `numbers`,
    [batch_size] int64, by which `dataset.locate` finds samples and tokens. Each iterator has a
    place of its own, which Grain's and Orbax' checkpoints save and restore.

    Args:
        dataset, layers, batch_size, options: as for `Batches`.
    """
    return _batch_dataset_class()(dataset, layers, batch_size, options)


@cache
def _batch_dataset_class() -> Any:
    import grain

    class BatchIterator(grain.DatasetIterator):  # type: ignore[misc]
        def __init__(self, batches: Batches) -> None:
            super().__init__()
            self._batches = batches
            self._epoch: Iterator[Vectors] = iter(())

        def __next__(self) -> dict[str, Any]:
            self._assert_not_closed()
            batch = next(self._epoch, None)
            if batch is None:
                self._epoch = iter(self._batches)
                batch = next(self._epoch)  # an epoch without a batch ends it all
            return {"values": batch.values, "numbers": batch.numbers}

        def get_state(self) -> dict[str, Any]:
            return self._batches.state_dict()

        def set_state(self, state: dict[str, Any]) -> None:
            self._batches.load_state_dict(state)
            self._epoch = iter(())

    class BatchDataset(grain.IterDataset):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            super().__init__()
            self._arguments = arguments
            self.__iter__()  # so that what cannot be met is said at once

        def __iter__(self) -> BatchIterator:
            dataset, layers, batch_size, options = self._arguments
            return BatchIterator(Batches(dataset, layers, batch_size, **options))

        def __reduce__(self) -> tuple[Any, ...]:
            return _restore, self._arguments

    return BatchDataset


def _restore(*arguments: Any) -> Any:
    return _batch_dataset_class()(*arguments)
