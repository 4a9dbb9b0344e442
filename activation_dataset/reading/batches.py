"""Batches of shuffled vectors for training."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.folder import REQUEST_BYTES
from activation_dataset.reading.shards import Shards
from activation_dataset.reading.shuffle import Norms, Window, WindowReader
from activation_dataset.reading.vectors import Dtype, Normalize, VectorFormat, Vectors
from activation_dataset.sites import Site, parse_site

LOGGER = logging.getLogger(__name__)

DEFAULT_WINDOW = 1 << 16
"""Default for the number of vectors that are shuffled together."""

DEFAULT_READ_MEMORY = 1 << 29
"""Default bytes of memory for data in transit from a bucket."""

MANY_VECTORS = 0.95
"""Fraction of the vectors of an epoch below which several readers warn of leaving out the rest."""

# A client holds the bytes of a request in memory twice while it assembles them.
_READ_BYTES = 2 * REQUEST_BYTES


@dataclass(frozen=True)
class Position:
    """Position of a reader in a stream of batches.

    Attributes:
        epoch: number of the epoch.
        window: number of the window in the epoch.
        row: number of vectors of the window that were yielded.
        rows: number of vectors of the epoch that were yielded.
        stop: end of a part of the epoch, as a number of vectors, or of windows with `norms`; None
            for the end of the epoch.
    """

    epoch: int = 0
    window: int = 0
    row: int = 0
    rows: int = 0
    stop: int | None = None


class Batches:
    """Batches of shuffled vectors, epoch by epoch, from any position.

    An iteration continues where the last one stopped and ends at the end of the epoch. The next
    iteration is the next epoch, in another order. The order depends only on the dataset, the seed,
    the window, the filters and the number of readers. Every CRC is checked before a vector of the
    record is yielded::

        batches = dataset.batches(10, 4096, seed=1)
        for batch in batches:                          # one epoch
            batch.values                               # [4096, hidden] float32
            batch.sample_ids, batch.places.positions
        state = batches.state_dict()                   # at any time; can be saved as JSON
        batches.load_state_dict(state)                 # also in another process

    Args:
        dataset: dataset to read.
        sites: a layer's number, the name of another site, or a sequence of sites of one width. With
            a sequence, values are [batch_size, sites, hidden], the same tokens at every site. For
            sites of several widths, create one `Batches` per width: all have the same order.
        batch_size: number of vectors of a batch.
        seed: seed of the order, 0..2^64 - 1.
        window: smallest number of vectors that are shuffled together. They come from parts of
            256 KiB to 16 MiB, depending on the window, from all over the dataset. Two windows are
            in memory at a time.
        rank: number of this reader, from 0.
        world_size: number of readers that share each epoch.
        read_memory: bytes of memory for data in transit from a bucket. It bounds the number of
            connections, and has no effect on the order.
        dtype: dtype of the values.
        normalize: scaling of the values.
        only: [n] ascending numbers of the vectors to read; None for all.
        norms: smallest and largest Euclidean norm, as stored, of the vectors to yield: one pair
            for all sites, or a mapping with the pairs of some sites. A vector outside the bounds of
            any site is excluded.
        drop_last: drop the incomplete last batch of an epoch, and the batches that other readers do
            not have. The log warns if several readers leave out many vectors. With `norms`, the
            number of batches of other readers is unknown: count steps instead of epochs.

    Attributes:
        shape: shape of the values of a full batch.
        dtype: numpy dtype of the values.
        position: position of the next batch.

    Raises:
        KeyError: if the dataset does not have a site.
        ValueError: if another argument is not allowed for this dataset.
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
        read_memory: int = DEFAULT_READ_MEMORY,
        dtype: Dtype = "float32",
        normalize: Normalize | None = None,
        only: NDArray[np.int64] | None = None,
        norms: Norms | Mapping[Site, Norms] | None = None,
        drop_last: bool = True,
    ) -> None:
        # int() would truncate a float, and JSON cannot represent a numpy integer.
        batch_size, window, seed = index(batch_size), index(window), index(seed)
        rank, world_size, read_memory = index(rank), index(world_size), index(read_memory)
        _check(batch_size > 0, f"batch_size is {batch_size}, expected at least 1")
        _check(window > 0, f"window is {window}, expected at least 1")
        _check(read_memory > 0, f"read_memory is {read_memory}, expected at least 1")
        _check(0 <= seed < 1 << 64, f"seed is {seed}, expected 0..2^64 - 1")
        _check(0 <= rank < world_size, f"rank is {rank}, expected 0..world_size - 1")
        self.dataset, self.batch_size = dataset, batch_size
        self._wanted = VectorFormat.of(dataset.metadata, sites, dtype, normalize)
        self.shape, self.dtype = self._wanted.shape(batch_size), self._wanted.dtype
        self._rank, self._drop_last = rank, drop_last
        self._threads = max(1, min(dataset.folder.parallel_reads, read_memory // _READ_BYTES))
        self._norms = _norms_by_site(norms, self._wanted.sites)
        numbers = None if only is None else _ascending(only, dataset.num_vectors)
        self._reader = WindowReader(
            dataset, self._wanted.sites, numbers, self._norms, window, seed, world_size
        )
        self._stream: dict[str, Any] = {
            "dataset": sha256(dataset.metadata.to_json().encode()).hexdigest(),
            "seed": seed,
            "window": window,
            "part_bytes": self._reader.part_bytes,
            "rank": rank,
            "world_size": world_size,
            "only": None if numbers is None else sha256(numbers.tobytes()).hexdigest(),
            "norms": {str(site): list(bounds) for site, bounds in self._norms.items()},
        }
        self.position = Position()
        if drop_last and not self._norms:
            self._check_shares(world_size)

    def _check_shares(self, readers: int) -> None:
        """Check that each reader has a batch, and warn if all together leave out many vectors."""
        sizes = self._reader.sizes(0)
        _check(
            min(sizes) > 0,
            f"world_size is {readers}, but the dataset has only {sum(map(bool, sizes))} parts of "
            f"{self._reader.part_bytes:,} bytes, which readers cannot share: use fewer readers",
        )
        _check(
            min(sizes) >= self.batch_size,
            f"batch_size is {self.batch_size}, but a reader has {min(sizes)} vectors: use a "
            "smaller batch_size, or drop_last=False",
        )
        given = readers * (min(sizes) // self.batch_size) * self.batch_size
        if readers > 1 and given < MANY_VECTORS * sum(sizes):
            LOGGER.warning(
                "%d readers with as many batches of %d leave out %.0f%% of the vectors of each "
                "epoch; fewer readers, smaller batches or drop_last=False leave out fewer",
                readers,
                self.batch_size,
                100 * (1 - given / sum(sizes)),
            )

    @property
    def epoch(self) -> int:
        """Epoch of the next batch."""
        return self.position.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, a number from 0."""
        _check(index(epoch) >= 0, f"epoch is {epoch}, expected a number from 0")
        self.position = Position(index(epoch))

    def take_part(self, part: int, parts: int) -> None:
        """Yield one part of the rest of the epoch, and then nothing until `set_epoch`.

        Together, the parts have all batches of the rest. With `norms`, the number of batches is
        unknown: a part has some of the windows, and each part has its own last batch.
        """
        at = self.position
        sizes = self._reader.window_sizes(at.epoch, self._rank)
        left = len(sizes) - at.window if self._norms else self._left()
        first, stop = left * part // parts, left * (part + 1) // parts
        if self._norms:
            row = at.row if part == 0 else 0
            position = Position(at.epoch, at.window + first, row, at.rows, at.window + stop)
        else:
            rows = at.rows + first * self.batch_size
            ends = np.cumsum([0, *sizes])
            window = int(np.searchsorted(ends, rows, side="right")) - 1
            row, until = rows - int(ends[window]), at.rows + stop * self.batch_size
            position = Position(at.epoch, window, row, rows, until)
        self.position = position
        self._stream = self._stream | {"part": f"{part} of {parts}"}

    def __len__(self) -> int:
        """Return the number of batches of the whole epoch.

        Raises:
            TypeError: if the number is unknown because of `norms`.
        """
        if self._norms:
            raise TypeError("the number of vectors with norms within the bounds is unknown")
        return self._left(Position(self.epoch))

    def _left(self, at: Position | None = None) -> int:
        """Return the number of batches of an epoch after a position, without norms."""
        at = at or self.position
        sizes = self._reader.sizes(at.epoch)
        if self._drop_last:
            return max(0, min(sizes) - at.rows) // self.batch_size
        return -(-(sizes[self._rank] - at.rows) // self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, for `load_state_dict`."""
        return {"stream": self._stream, **asdict(self.position)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved position with the batches that would have followed.

        Dtype, normalization, batch size and, without `norms`, the sites may differ.

        Raises:
            ValueError: if the state belongs to a stream with another order. The message says which
                options differ.
        """
        missing = {"stream", *asdict(Position())} - state.keys() - {"stop"}
        _check(
            not missing,
            f"the state has no {', '.join(sorted(missing))}: expected the result of state_dict",
        )
        saved, here = state["stream"], self._stream
        differing = [
            f"{name} {saved.get(name)} (here {here.get(name)})"
            for name in {**here, **saved}
            if saved.get(name) != here.get(name)
        ]
        _check(not differing, f"the state belongs to another stream: {', '.join(differing)}")
        self.position = Position(**{n: state[n] for n in asdict(Position()) if n in state})

    def __iter__(self) -> Iterator[Vectors]:
        """Yield the rest of the epoch.

        Raises:
            CorruptRecordError: if a record is damaged.
            ValueError: if too few vectors of the epoch have norms within the bounds for a batch.
        """
        start = self.position
        epoch, row, rows, filled = start.epoch, start.row, start.rows, 0
        last = self._reader.windows(epoch, self._rank)
        if self._norms:
            end, last = None, last if start.stop is None else start.stop
        elif start.stop is None:
            end = rows + self._left() * self.batch_size
        else:
            end = start.stop
        if rows == end:
            last = start.window
        finished = Position(epoch + 1)
        if start.stop is not None:
            finished = Position(epoch, last, 0, rows if end is None else end, start.stop)
        values, numbers = np.empty(self.shape, self.dtype), np.empty(self.batch_size, np.int64)
        for number, window in enumerate(self._windows(epoch, start.window, last), start.window):
            while row < len(window.order) and rows != end:
                chosen = window.order[row : row + self.batch_size - filled]
                part = slice(filled, filled + len(chosen))
                self._wanted.fill(values[part], window.stored, chosen)
                numbers[part] = window.numbers[chosen]
                row += len(chosen)
                filled += len(chosen)
                if filled == self.batch_size:
                    rows += filled
                    self.position = replace(start, window=number, row=row, rows=rows)
                    if rows == end:
                        self.position = finished
                    yield Vectors(values, numbers, self.dataset)
                    values, numbers = np.empty_like(values), np.empty_like(numbers)
                    filled = 0
            if rows == end:
                break
            row = 0
        self.position = finished
        given = rows + (0 if self._drop_last and start.stop is None else filled)
        if self._norms and start.window < last and not given:
            raise ValueError(
                f"{filled} vectors of the epoch are within the norms "
                f"{self._stream['norms']}, too few for a batch of {self.batch_size}"
            )
        if filled and not self._drop_last:
            yield Vectors(values[:filled], numbers[:filled], self.dataset)

    def _windows(self, epoch: int, first: int, last: int) -> Iterator[Window]:
        """Yield the windows first..last - 1 of this reader while threads read the next one."""
        memory = [self._reader.memory() for _ in range(2)]
        coming: deque[Future[Window]] = deque()
        begun = first
        reads, background = (
            ThreadPoolExecutor(self._threads, "read"),
            ThreadPoolExecutor(1, "window"),
        )
        try:
            for _ in range(first, last):
                # The memory of the previous window is free now. The reads of the next window follow
                # without a pause.
                while begun < last and len(coming) < len(memory):
                    place = memory[begun % len(memory)]
                    wait = self._reader.begin(reads, place, epoch, self._rank, begun)
                    coming.append(background.submit(wait))
                    begun += 1
                yield coming.popleft().result()
        finally:
            reads.shutdown(cancel_futures=True)
            background.shutdown(cancel_futures=True)


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
        _check(site in sites, f"norms has site {site}, expected one of the sites read: {sites}")
        _check(
            least <= largest,
            f"norms of site {site} are {least} to {largest}, expected the smaller one first",
        )
    return {site: (float(least), float(largest)) for site, (least, largest) in norms.items()}


def _ascending(only: NDArray[np.int64], num_vectors: int) -> NDArray[np.int64]:
    given = np.asarray(only)
    _check(
        given.dtype.kind in "iu" or not given.size,
        f"only has dtype {given.dtype}, expected integers",
    )
    numbers = np.ascontiguousarray(given, np.int64)
    _check(numbers.ndim == 1, f"only has shape {numbers.shape}, expected [n]")
    ascending = bool((np.diff(numbers) > 0).all())
    within = not len(numbers) or (numbers[0] >= 0 and numbers[-1] < num_vectors)
    _check(ascending and bool(within), f"only is not ascending, or not in 0..{num_vectors - 1}")
    _check(len(numbers) > 0, "only is empty, expected at least one vector")
    return numbers


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
