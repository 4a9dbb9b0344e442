"""Samples by their number, as map-style datasets have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.sites import Site


class Samples(Sequence[dict[str, Any]]):
    """The samples of a layer, each a dict; can be sent to other processes, which open it anew.

    PyTorch takes it as a map-style dataset, Grain as a random access data source. To train on
    shuffled tokens, use `Batches`: it reads a record once, and not once for each of its tokens.

    Args:
        dataset: to read from.
        layer: a layer's number, or the name of another site.
    """

    def __init__(self, dataset: ActivationDataset, layer: Site) -> None:
        self._records = dataset[layer]
        self._path, self._layer = dataset.path, layer

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        """A sample, or for a slice a list of them.

        Returns:
            values: [hidden], or [num_tokens, hidden] with pooling "none", float32.
            sample_id, task_id: str.
            token_ids: [n] int32.
        """
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        record = self._records[index]
        return {
            "values": record.activation,
            "sample_id": record.sample_id,
            "task_id": record.task_id,
            "token_ids": record.token_ids,
        }

    def __repr__(self) -> str:
        # Grain compares it when it goes on from a checkpoint.
        return f"Samples({self._path!r}, layer {self._layer})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self._path, self._layer)


def _open(path: str, layer: Site) -> Samples:
    return Samples(ActivationDataset(path), layer)
