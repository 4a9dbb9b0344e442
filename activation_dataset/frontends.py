"""Shuffled batches as datasets of PyTorch, Grain, tf.data and JAX.

Each function imports its framework when it is called. Batches have `numbers`, from which
`dataset.locate` finds samples and tokens. To read whole samples by number, use `dataset[site]`, a
map-style dataset for PyTorch and a random access data source for Grain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np

from activation_dataset.reading.batches import Batches
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reading.shared_position import SIZE, SharedPosition
from activation_dataset.reading.vectors import Vectors
from activation_dataset.sites import Site


def torch_dataset(
    dataset: ActivationDataset, sites: Site | Sequence[Site], batch_size: int, **options: Any
) -> Any:
    """Return a torch IterableDataset of shuffled batches, to iterate or to pass to a DataLoader.

    For example::

        DataLoader(torch_dataset(dataset, 10, 4096), batch_size=None)

    An item is a dict: `values`, [batch_size, hidden] or [batch_size, sites, hidden], float32, or
    torch.bfloat16 with dtype="bfloat16"; `numbers`, [batch_size] int64. The tensors share memory
    with the numpy arrays of `Batches`.

    `Batches` describes the arguments, `set_epoch`, `state_dict` and `load_state_dict`. Pass
    `batch_size=None` to the DataLoader, because the items are batches already. The workers of a
    DataLoader share each epoch. Two or more of them yield the same batches in another order, which
    depends on their number; with `norms`, the batches differ too. Each iteration of a loader with
    workers is the next epoch, or the rest of an epoch after `load_state_dict`. Workers read ahead
    of the loop. With workers, only torchdata's StatefulDataLoader can save the position of the
    loop, and `state_dict` of the dataset raises RuntimeError. Workers are not needed for speed,
    because a thread reads ahead.
    """
    return _torch_class()(partial(Batches, dataset, sites, batch_size, **options))


@cache
def _torch_class() -> Any:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info

    def tensors(batch: Vectors) -> dict[str, torch.Tensor]:
        values = batch.values
        if values.dtype.name == "bfloat16":
            tensor = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(values)
        return {"values": tensor, "numbers": torch.from_numpy(batch.numbers)}

    class TorchBatches(IterableDataset[dict[str, torch.Tensor]]):
        def __init__(self, make: partial[Batches]) -> None:
            self._make, self._batches = make, make()
            self._opened = self._loaded = False  # Changes only in a worker.
            self.__setstate__(torch.zeros(SIZE, dtype=torch.int64))

        def __len__(self) -> int:
            return len(self._of_this_process())

        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            batches, worker = self._of_this_process(), get_worker_info()
            if worker is None:
                return self._in_main(batches)
            # Begin now and not lazily: every worker calls `iter` when an iteration begins.
            loaded = batches.position if self._loaded else None
            position = self._shared.begin(worker, loaded)
            if not self._loaded:
                batches.position = position
                batches.take_part(worker.id, worker.num_workers)
            self._loaded = False
            return map(tensors, batches)

        def set_epoch(self, epoch: int) -> None:
            batches = self._of_this_process()
            batches.set_epoch(epoch)
            self._shared.set(batches.position)

        def state_dict(self) -> dict[str, Any]:
            batches = self._of_this_process()
            if get_worker_info() is None and self._shared.moved_by_workers():
                raise RuntimeError(
                    "workers of a DataLoader read ahead, and the dataset does not know the "
                    "position of the loop: save the state of torchdata's StatefulDataLoader, use "
                    "num_workers=0, or, between two epochs, call set_epoch first"
                )
            return batches.state_dict()

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            batches, worker = self._of_this_process(), get_worker_info()
            if worker is None:
                batches.load_state_dict(state)
                self._shared.set(batches.position)
                return
            batches.take_part(worker.id, worker.num_workers)
            # The same worker saved the state, with the same number of workers.
            batches.load_state_dict(state)
            self._loaded = True

        def _in_main(self, batches: Batches) -> Iterator[dict[str, torch.Tensor]]:
            for batch in batches:
                self._shared.set(batches.position)
                yield tensors(batch)
            self._shared.set(batches.position)

        def _of_this_process(self) -> Batches:
            """Return the batches. A worker reopens them, because it must not share connections."""
            if get_worker_info() is None:
                self._batches.position = self._shared.get()
            elif not self._opened:
                (dataset, *rest), options = self._make.args, self._make.keywords
                dataset.check_unchanged()
                self._batches = Batches(ActivationDataset(dataset.path), *rest, **options)
                self._opened = True
            return self._batches

        def __reduce__(self) -> tuple[Any, ...]:
            make = partial(torch_dataset, *self._make.args, **self._make.keywords)
            return make, (), self._memory

        def __setstate__(self, memory: torch.Tensor) -> None:
            self._memory = memory.share_memory_()  # Copies, unless torch sends it to a worker.
            self._shared = SharedPosition(memory.numpy())

    return TorchBatches


def grain_dataset(
    dataset: ActivationDataset, sites: Site | Sequence[Site], batch_size: int, **options: Any
) -> Any:
    """Return an endless grain.IterDataset of shuffled batches, epoch after epoch.

    An element is a dict: `values`, [batch_size, hidden] or [batch_size, sites, hidden]; `numbers`,
    [batch_size] int64. Each iterator has its own position, which checkpoints of Grain and Orbax
    save and restore. `Batches` describes the arguments.
    """
    return _grain_class()(partial(Batches, dataset, sites, batch_size, **options))


@cache
def _grain_class() -> Any:
    import grain

    class GrainIterator(grain.DatasetIterator):
        def __init__(self, batches: Batches) -> None:
            super().__init__()
            self._batches = batches
            self._epoch: Iterator[Vectors] = iter(())

        def __next__(self) -> dict[str, Any]:
            self._assert_not_closed()
            batch = next(self._epoch, None)
            if batch is None:
                self._epoch = iter(self._batches)
                batch = next(self._epoch)  # An epoch without batches ends the iteration.
            return {"values": batch.values, "numbers": batch.numbers}

        def get_state(self) -> dict[str, Any]:
            return self._batches.state_dict()

        def set_state(self, state: dict[str, Any]) -> None:
            self._batches.load_state_dict(state)
            self._epoch = iter(())

    class GrainBatches(grain.IterDataset):
        def __init__(self, make: partial[Batches]) -> None:
            super().__init__()
            self._make = make
            make()  # Checks the arguments.

        def __iter__(self) -> GrainIterator:
            return GrainIterator(self._make())

        def __reduce__(self) -> tuple[Any, ...]:
            return partial(grain_dataset, *self._make.args, **self._make.keywords), ()

    return GrainBatches


def tf_dataset(batches: Batches) -> Any:
    """Return a tf.data.Dataset of batches. Each iteration is the rest of an epoch.

    An element is a dict: `values`, [n, hidden] or [n, sites, hidden]; `numbers`, [n] int64. With
    `prefetch`, the state of `batches` runs ahead of the elements of the loop.
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


class DeviceBatches:
    """Batches whose values are jax.Arrays. JAX transfers the next ones while one is in use.

    Example::

        for batch in DeviceBatches(dataset.batches(10, 4096)):
            state = train_step(state, batch.values)

    Args:
        batches: source of the batches.
        sharding: `jax.sharding.Sharding` or device of the values; None for JAX's default.
        ahead: number of batches to transfer ahead.
    """

    def __init__(self, batches: Batches, sharding: Any = None, ahead: int = 2) -> None:
        self._batches, self._sharding, self._ahead = batches, sharding, ahead
        self._state = batches.state_dict()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Vectors]:
        """Yield the rest of the epoch."""
        import jax

        self._batches.load_state_dict(self._state)
        sent: deque[tuple[Vectors, dict[str, Any]]] = deque()
        for batch in self._batches:
            values = jax.device_put(batch.values, self._sharding)
            sent.append((replace(batch, values=values), self._batches.state_dict()))
            if len(sent) > self._ahead:
                yield self._next(sent)
        while sent:
            yield self._next(sent)
        self._state = self._batches.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last yielded batch; see `Batches`."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved position; see `Batches`."""
        self._batches.load_state_dict(state)
        self._state = self._batches.state_dict()

    def _next(self, sent: deque[tuple[Vectors, dict[str, Any]]]) -> Vectors:
        batch, self._state = sent.popleft()
        return batch
