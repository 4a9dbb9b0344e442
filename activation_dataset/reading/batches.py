"""Batches of shuffled vectors for training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.elements import Dtype, Normalise, Wanted, gather
from activation_dataset.reading.vectors import Vectors
from activation_dataset.reading.window import Norms, Window, WindowReader
from activation_dataset.reuse import ReusedArrays
from activation_dataset.sites import Site, parse_site

if TYPE_CHECKING:
    from activation_dataset.reading.reader import ActivationDataset

DEFAULT_WINDOW = 1 << 16
"""Vectors that are shuffled together unless another number is asked for."""


@dataclass(frozen=True)
class Position:
    """What comes next.

    Attributes:
        epoch: number of the epoch.
        window: number of the window in this reader's part of the epoch.
        row: vectors of the window that are done.
        rows: vectors of the epoch that are done.
    """

    epoch: int = 0
    window: int = 0
    row: int = 0
    rows: int = 0


class Batches:
    """Batches of shuffled vectors, epoch by epoch, from any position on.

    Iterating goes on where the last iteration stopped, up to the end of the epoch; the next one is
    the next epoch, in another order. The order is a function of the dataset, seed, window, filters
    and the number of readers. What is read is checked: no vector of a damaged record is given out.

        batches = dataset.batches(10, 4096, seed=1)
        for batch in batches:                          # one epoch
            batch.values                               # [4096, hidden] float32
            batch.sample_ids, batch.places.positions
        state = batches.state_dict()                   # at any moment; plain values, as for JSON
        batches.load_state_dict(state)                 # also in another process

    Attributes:
        dataset, batch_size: as given.
        shape, dtype: of the values of a whole batch.

    Args:
        dataset: where the vectors are.
        layers: a layer's number, or the name of another site, or several of them: then the values
            are [batch_size, layers, hidden], the same tokens in every layer.
        batch_size: vectors of a batch.
        seed: of the order, 0..2^64 - 1.
        window: vectors that are shuffled together, at least. They are of runs of samples, about
            256 KiB each, from all over the dataset. Two windows are in memory at a time.
        rank, world_size: which of how many readers this is. They share the runs of each epoch.
        dtype: of the values.
        normalise: scaling of the values.
        only: [n] ascending numbers of the vectors to read; None for all.
        norms: least and largest Euclidean norm, as stored, of a vector to be given out; for every
            layer, or for each layer that is named. One that is outside in a layer is left out.
        drop_last: whether to leave out the incomplete last batch of an epoch, and the batches by
            which other readers have fewer. How many other readers have is not known with `norms`:
            then count steps, not epochs.

    Raises:
        KeyError, ValueError: an argument that cannot be met; says which and why.
    """

    def __init__(
        self,
        dataset: ActivationDataset,
        layers: Site | Sequence[Site],
        batch_size: int,
        *,
        seed: int = 0,
        window: int = DEFAULT_WINDOW,
        rank: int = 0,
        world_size: int = 1,
        dtype: Dtype = "float32",
        normalise: Normalise | None = None,
        only: NDArray[np.int64] | None = None,
        norms: Norms | Mapping[Site, Norms] | None = None,
        drop_last: bool = True,
    ) -> None:
        _check(batch_size > 0, f"batch_size is {batch_size}, expected at least 1")
        _check(window > 0, f"window is {window}, expected at least 1")
        _check(0 <= seed < 1 << 64, f"seed is {seed}, expected 0..2^64 - 1")
        _check(0 <= rank < world_size, f"rank is {rank}, expected 0..world_size - 1")
        self.dataset, self.batch_size = dataset, batch_size
        self._wanted = Wanted.of(dataset.metadata, layers, dtype, normalise)
        self.shape = self._wanted.shape(batch_size, dataset.kind.hidden)
        self.dtype = self._wanted.dtype
        self._norms = _norms_by_layer(norms, self._wanted.layers)
        self._seed, self._rank, self._drop_last = seed, rank, drop_last
        numbers = None if only is None else _checked(only, dataset.num_vectors)
        self._reader = WindowReader(
            dataset, self._wanted.layers, numbers, self._norms, window, seed, world_size
        )
        self._stream = {
            "dataset": sha256(dataset.metadata.to_json().encode()).hexdigest(),
            "seed": seed,
            "window": window,
            "rank": rank,
            "world_size": world_size,
            "only": None if numbers is None else sha256(numbers.tobytes()).hexdigest(),
            "norms": {str(layer): list(each) for layer, each in self._norms.items()},
        }
        self._arrays = ReusedArrays()
        self._position = Position()
        if drop_last and not self._norms:
            most = min(self._reader.sizes(0))
            _check(
                most >= batch_size,
                f"batch_size is {batch_size}, but there are {most} vectors for each reader: ask "
                "for smaller batches, or for the incomplete one with drop_last=False",
            )

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next batch is of."""
        return self._position.epoch

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch."""
        self._position = Position(epoch)

    def __len__(self) -> int:
        """Batches of the whole epoch that the next batch is of.

        Raises:
            TypeError: there are bounds for norms; how many vectors are within is not known.
        """
        if self._norms:
            raise TypeError("how many vectors have norms within the bounds is not known beforehand")
        sizes = self._reader.sizes(self.epoch)
        if self._drop_last:
            return min(sizes) // self.batch_size
        return -(-sizes[self._rank] // self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """What comes after the last batch that was given out, for `load_state_dict`."""
        return {"stream": self._stream, **asdict(self._position)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another one was: the next batches are those that it would have given.

        Dtype, normalisation, batch size and, but for `norms`, layers may be others.

        Raises:
            ValueError: the state is of a stream with another order; says in what they differ.
        """
        missing = {"stream", *asdict(Position())} - state.keys()
        _check(not missing, f"the state has no {', '.join(sorted(missing))}: it is no state_dict")
        differing = [
            f"{name} {state['stream'].get(name)} (here {here})"
            for name, here in self._stream.items()
            if state["stream"].get(name) != here
        ]
        _check(not differing, f"the state is of another stream: {', '.join(differing)}")
        self._position = Position(**{name: state[name] for name in asdict(Position())})

    def __iter__(self) -> Iterator[Vectors]:
        """The rest of the epoch.

        Raises:
            CorruptRecordError: a CRC does not match, or a file ends too early.
        """
        start = self._position
        end = len(self) * self.batch_size if self._drop_last and not self._norms else None
        window, row, rows, filled = start.window, start.row, start.rows, 0
        windows = len(self._reader.windows(start.epoch, self._rank))
        load = partial(self._reader.load, start.epoch, self._rank)
        values, numbers = self._empty()
        with ThreadPoolExecutor(1, "window") as background:
            if window < windows:
                coming = background.submit(load, window)
            while window < windows and rows != end:
                loaded = coming.result()
                if window + 1 < windows:
                    coming = background.submit(load, window + 1)
                while row < len(loaded.kept) and rows != end:
                    chosen = loaded.kept[row : row + self.batch_size - filled]
                    part = slice(filled, filled + len(chosen))
                    self._gather(loaded, chosen, values[part])
                    numbers[part] = loaded.numbers[chosen]
                    row += len(chosen)
                    filled += len(chosen)
                    if filled == self.batch_size:
                        rows += filled
                        self._position = Position(start.epoch, window, row, rows)
                        if rows == end:
                            self._position = Position(start.epoch + 1)
                        yield Vectors(values, numbers, self.dataset)
                        values, numbers = self._empty()
                        filled = 0
                window, row = window + 1, 0
        self._position = Position(start.epoch + 1)
        if filled and not self._drop_last:
            yield Vectors(values[:filled], numbers[:filled], self.dataset)

    def _gather(self, window: Window, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Writes rows of a window as values of the wanted dtype."""
        for place, factor in enumerate(self._wanted.factors):
            gather(window.stored[place], rows, self._wanted.layer_of(out, place), factor)

    def _empty(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Values and numbers of a batch, to be filled."""
        return self._arrays.take(self.shape, self.dtype), np.empty(self.batch_size, np.int64)


def _norms_by_layer(
    norms: Norms | Mapping[Site, Norms] | None, layers: Sequence[Site]
) -> dict[Site, Norms]:
    if norms is None:
        return {}
    if isinstance(norms, Mapping):
        norms = {parse_site(str(layer)): bounds for layer, bounds in norms.items()}
    else:
        norms = dict.fromkeys(layers, norms)
    for layer, (least, largest) in norms.items():
        _check(layer in layers, f"norms has layer {layer}, which is not among those read: {layers}")
        _check(least <= largest, f"norms of layer {layer} are {least} to {largest}: none is within")
    return {layer: (float(least), float(largest)) for layer, (least, largest) in norms.items()}


def _checked(only: NDArray[np.int64], num_vectors: int) -> NDArray[np.int64]:
    numbers = np.ascontiguousarray(only, np.int64)
    _check(numbers.ndim == 1, f"only has shape {numbers.shape}, expected [n]")
    ascending = bool((np.diff(numbers) > 0).all())
    within = not len(numbers) or (numbers[0] >= 0 and numbers[-1] < num_vectors)
    _check(ascending and bool(within), f"only is not ascending numbers in 0..{num_vectors - 1}")
    return numbers


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
