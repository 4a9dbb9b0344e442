"""Batches of shuffled vectors for training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.reading.shards import Shards
from activation_dataset.reading.shuffle import Norms, Window, WindowReader
from activation_dataset.reading.vectors import Dtype, Normalize, VectorFormat, Vectors
from activation_dataset.sites import Site, parse_site

DEFAULT_WINDOW = 1 << 16
"""Default number of vectors that are shuffled together."""


@dataclass(frozen=True)
class Position:
    """Epoch, window of this reader, and vectors of the window and of the epoch given out so far."""

    epoch: int = 0
    window: int = 0
    row: int = 0
    rows: int = 0


class Batches:
    """Batches of shuffled vectors, epoch by epoch, from any position.

    An iteration continues where the last one stopped, up to the end of the epoch. The next
    iteration is the next epoch, in another order. The order depends only on the dataset, the seed,
    the window, the filters and the number of readers. Every CRC is checked: no vector of a damaged
    record is given out.

        batches = dataset.batches(10, 4096, seed=1)
        for batch in batches:                          # one epoch
            batch.values                               # [4096, hidden] float32
            batch.sample_ids, batch.places.positions
        state = batches.state_dict()                   # at any time; can be saved as JSON
        batches.load_state_dict(state)                 # also in another process

    `shape` and `dtype` are those of the values of a full batch.

    Args:
        sites: a layer's number, the name of another site, or a sequence of them. With a sequence,
            values are [batch_size, sites, hidden], the same tokens at every site.
        seed: of the order, 0..2^64 - 1.
        window: smallest number of vectors that are shuffled together. They come from chunks of
            about 256 KiB from all over the dataset. Two windows are in memory at a time.
        rank, world_size: number of this reader, and number of readers that share each epoch.
        dtype, normalize: dtype and scaling of the values.
        only: [n] ascending numbers of the vectors to read; None for all.
        norms: smallest and largest Euclidean norm, as stored, of the vectors to give out: one pair
            for every site, or a pair for each site that is named. A vector outside the bounds of
            one site is left out.
        drop_last: leave out the incomplete last batch of an epoch, and the batches that other
            readers do not have. With `norms`, the number of batches of other readers is unknown:
            count steps instead of epochs.

    Raises:
        KeyError, ValueError: an argument is not allowed for this dataset.
    """

    def __init__(
        self,
        dataset: Shards,
        sites: Site | Sequence[Site],
        batch_size: int,
        *,
        seed: int = 0,
        window: int = DEFAULT_WINDOW,
        rank: int = 0,
        world_size: int = 1,
        dtype: Dtype = "float32",
        normalize: Normalize | None = None,
        only: NDArray[np.int64] | None = None,
        norms: Norms | Mapping[Site, Norms] | None = None,
        drop_last: bool = True,
    ) -> None:
        _check(batch_size > 0, f"batch_size is {batch_size}, expected at least 1")
        _check(window > 0, f"window is {window}, expected at least 1")
        _check(0 <= seed < 1 << 64, f"seed is {seed}, expected 0..2^64 - 1")
        _check(0 <= rank < world_size, f"rank is {rank}, expected 0..world_size - 1")
        self.dataset, self.batch_size = dataset, batch_size
        self._wanted = VectorFormat.of(dataset.metadata, sites, dtype, normalize)
        self.shape, self.dtype = self._wanted.shape(batch_size), self._wanted.dtype
        self._rank, self._drop_last = rank, drop_last
        self._norms = _norms_by_site(norms, self._wanted.sites)
        numbers = None if only is None else _ascending(only, dataset.num_vectors)
        self._reader = WindowReader(
            dataset, self._wanted.sites, numbers, self._norms, window, seed, world_size
        )
        self._stream = {
            "dataset": sha256(dataset.metadata.to_json().encode()).hexdigest(),
            "seed": seed,
            "window": window,
            "rank": rank,
            "world_size": world_size,
            "only": None if numbers is None else sha256(numbers.tobytes()).hexdigest(),
            "norms": {str(site): list(bounds) for site, bounds in self._norms.items()},
        }
        self._position = Position()
        if drop_last and not self._norms:
            most = min(self._reader.sizes(0))
            _check(
                most >= batch_size,
                f"batch_size is {batch_size}, but each reader has {most} vectors: use a smaller "
                "batch_size, or drop_last=False",
            )

    @property
    def epoch(self) -> int:
        """Epoch of the next batch."""
        return self._position.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self._position = Position(epoch)

    def __len__(self) -> int:
        """Number of batches of the whole epoch. Raises TypeError with `norms`: it is unknown."""
        if self._norms:
            raise TypeError("the number of vectors with norms within the bounds is unknown")
        sizes = self._reader.sizes(self.epoch)
        if self._drop_last:
            return min(sizes) // self.batch_size
        return -(-sizes[self._rank] // self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, for `load_state_dict`."""
        return {"stream": self._stream, **asdict(self._position)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved position with the batches that would have followed there.

        Dtype, normalization, batch size and, without `norms`, the sites may differ.

        Raises:
            ValueError: the state belongs to a stream with another order; says what differs.
        """
        missing = {"stream", *asdict(Position())} - state.keys()
        _check(not missing, f"the state has no {', '.join(sorted(missing))}: not a state_dict")
        differing = [
            f"{name} {state['stream'].get(name)} (here {here})"
            for name, here in self._stream.items()
            if state["stream"].get(name) != here
        ]
        _check(not differing, f"the state is of another stream: {', '.join(differing)}")
        self._position = Position(**{name: state[name] for name in asdict(Position())})

    def __iter__(self) -> Iterator[Vectors]:
        """Yield the rest of the epoch. Raises CorruptRecordError."""
        start = self._position
        epoch, row, rows, filled = start.epoch, start.row, start.rows, 0
        end = len(self) * self.batch_size if self._drop_last and not self._norms else None
        values, numbers = np.empty(self.shape, self.dtype), np.empty(self.batch_size, np.int64)
        for number, window in enumerate(self._windows(epoch, start.window), start.window):
            while row < len(window.order) and rows != end:
                chosen = window.order[row : row + self.batch_size - filled]
                part = slice(filled, filled + len(chosen))
                self._wanted.fill(values[part], window.stored, chosen)
                numbers[part] = window.numbers[chosen]
                row += len(chosen)
                filled += len(chosen)
                if filled == self.batch_size:
                    rows += filled
                    self._position = Position(epoch, number, row, rows)
                    if rows == end:
                        self._position = Position(epoch + 1)
                    yield Vectors(values, numbers, self.dataset)
                    values, numbers = np.empty_like(values), np.empty_like(numbers)
                    filled = 0
            if rows == end:
                break
            row = 0
        self._position = Position(epoch + 1)
        if filled and not self._drop_last:
            yield Vectors(values[:filled], numbers[:filled], self.dataset)

    def _windows(self, epoch: int, first: int) -> Iterator[Window]:
        """Yield the windows of this reader, while a thread reads the next one."""
        count = len(self._reader.windows(epoch, self._rank))
        memory = [self._reader.memory() for _ in range(2)]

        def load(window: int) -> Window:
            return self._reader.load(memory[window % 2], epoch, self._rank, window)

        with ThreadPoolExecutor(1, "window") as background:
            coming = [background.submit(load, window) for window in range(first, count)[:1]]
            for window in range(first, count):
                loaded = coming.pop().result()
                if window + 1 < count:
                    coming.append(background.submit(load, window + 1))
                yield loaded


def _norms_by_site(
    norms: Norms | Mapping[Site, Norms] | None, sites: Sequence[Site]
) -> dict[Site, Norms]:
    if norms is None:
        return {}
    if isinstance(norms, Mapping):
        norms = {parse_site(str(site)): bounds for site, bounds in norms.items()}
    else:
        norms = dict.fromkeys(sites, norms)
    for site, (least, largest) in norms.items():
        _check(site in sites, f"norms has site {site}, which is not among those read: {sites}")
        _check(least <= largest, f"norms of site {site} are {least} to {largest}: none is within")
    return {site: (float(least), float(largest)) for site, (least, largest) in norms.items()}


def _ascending(only: NDArray[np.int64], num_vectors: int) -> NDArray[np.int64]:
    numbers = np.ascontiguousarray(only, np.int64)
    _check(numbers.ndim == 1, f"only has shape {numbers.shape}, expected [n]")
    ascending = bool((np.diff(numbers) > 0).all())
    within = not len(numbers) or (numbers[0] >= 0 and numbers[-1] < num_vectors)
    _check(ascending and bool(within), f"only is not ascending numbers in 0..{num_vectors - 1}")
    return numbers


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
