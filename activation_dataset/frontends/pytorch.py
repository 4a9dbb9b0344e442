"""Batches for PyTorch. (`reading.samples.Samples` is a map-style dataset as it is.)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from activation_dataset.reading.batches import Batches
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reading.vectors import Vectors
from activation_dataset.sites import Site


def batch_dataset(
    dataset: ActivationDataset, layers: Site | Sequence[Site], batch_size: int, **options: Any
) -> Any:
    """A torch IterableDataset of shuffled batches, to be iterated or given to a DataLoader.

        DataLoader(batch_dataset(dataset, 10, 4096), batch_size=None)

    An item is a dict: `values`, [batch_size, hidden] or [batch_size, layers, hidden], float32, or
    torch.bfloat16 with dtype="bfloat16"; `numbers`, [batch_size] int64, by which `dataset.locate`
    finds samples and tokens. It shares the memory of `Batches`, and copies nothing.

    `set_epoch`, `state_dict` and `load_state_dict` are those of `Batches`. The workers of a
    DataLoader share each epoch, and each has its own state. Workers that are started anew for each
    epoch know nothing of the last: call `set_epoch` before each. None are needed for speed, for a
    thread reads ahead.

    Args:
        dataset, layers, batch_size, options: as for `Batches`.
    """
    return _batch_dataset_class()(dataset, layers, batch_size, options)


@cache
def _batch_dataset_class() -> Any:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info

    class BatchDataset(IterableDataset[dict[str, torch.Tensor]]):
        def __init__(
            self,
            dataset: ActivationDataset,
            layers: Site | Sequence[Site],
            batch_size: int,
            options: Mapping[str, Any],
        ) -> None:
            self._arguments = dataset, layers, batch_size, dict(options)
            self._batches = Batches(dataset, layers, batch_size, **options)
            self._worker: int | None = None

        def __len__(self) -> int:
            return len(self._of_this_process())

        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for batch in self._of_this_process():
                yield {
                    "values": _tensor(torch, batch),
                    "numbers": torch.from_numpy(batch.numbers),
                }

        def set_epoch(self, epoch: int) -> None:
            self._of_this_process().set_epoch(epoch)

        def state_dict(self) -> dict[str, Any]:
            return self._of_this_process().state_dict()

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self._of_this_process().load_state_dict(state)

        def _of_this_process(self) -> Batches:
            """The batches of a DataLoader's worker, which sees a copy of this object, or all."""
            worker = get_worker_info()
            if worker is not None and worker.id != self._worker:
                dataset, layers, batch_size, options = self._arguments
                rank, world_size = options.get("rank", 0), options.get("world_size", 1)
                share = {
                    "rank": rank * worker.num_workers + worker.id,
                    "world_size": world_size * worker.num_workers,
                }
                # Opened anew: connections must not be shared by processes.
                dataset = ActivationDataset(dataset.path)
                epoch = self._batches.epoch
                self._batches = Batches(dataset, layers, batch_size, **options | share)
                self._batches.set_epoch(epoch)
                self._worker = worker.id
            return self._batches

        def __reduce__(self) -> tuple[Any, ...]:
            return _restore, (*self._arguments, self._batches.state_dict())

    return BatchDataset


def _restore(
    dataset: ActivationDataset,
    layers: Site | Sequence[Site],
    batch_size: int,
    options: Mapping[str, Any],
    state: Mapping[str, Any],
) -> Any:
    """A copy in another process."""
    copy = batch_dataset(dataset, layers, batch_size, **options)
    copy.load_state_dict(state)
    return copy


def _tensor(torch: Any, batch: Vectors) -> Any:
    """The values as a tensor that shares their memory."""
    if batch.values.dtype.name == "bfloat16":
        return torch.from_numpy(batch.values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(batch.values)
