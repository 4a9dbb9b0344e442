"""Layout of a shard: the places of its records and vectors, without ids and tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layout:
    """Places of records in the layer files of a shard.

    A layout takes 8 + 12 x widths bytes of memory for each sample.

    Attributes:
        widths: widths of vectors, first the width of the residual stream, then other widths.
        record_starts: [widths, samples + 1] int64, offset of each record in a layer file; the last
            value is the size of the file.
        heads: [widths, samples] int32, bytes of each record before its activation.
        vector_starts: [samples + 1] int64, number of vectors before each sample; the last value is
            the number of all vectors.
    """

    widths: tuple[int, ...]
    record_starts: Numbers
    heads: NDArray[np.int32]
    vector_starts: Numbers

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.vector_starts) - 1

    @property
    def nbytes(self) -> int:
        """Size in memory in bytes."""
        return self.record_starts.nbytes + self.heads.nbytes + self.vector_starts.nbytes


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of records of a shard.

    Attributes:
        firsts: [runs] int64, first record of each run.
        lasts: [runs] int64, record after the last one of each run.
        starts: [runs] int64, first vector of each run.
        stops: [runs] int64, vector after the last one of each run.
        wanted: [runs] int64, number of wanted vectors of each run.
    """

    firsts: Numbers
    lasts: Numbers
    starts: Numbers
    stops: Numbers
    wanted: Numbers


def runs(layout: Layout, chunk_bytes: int, run_bytes: int, only: Numbers | None) -> Runs:
    """Cut a shard into runs of records, in order. A reader reads the records of a run together.

    Chunks are records that begin in the same `chunk_bytes` of the file. Neighboring chunks that
    begin in the same `run_bytes` are one run. Chunks without wanted vectors are skipped. Offsets
    refer to the residual stream, which makes the runs the same for every site.

    Args:
        layout: layout of the shard.
        chunk_bytes: size of a chunk.
        run_bytes: largest size of a run, a multiple of `chunk_bytes`.
        only: [n] ascending numbers of the wanted vectors, relative to the shard; None for all.
    """
    offsets = layout.record_starts[0, :-1]
    firsts = np.flatnonzero(np.diff(offsets // chunk_bytes, prepend=-1))
    bounds = np.append(firsts, len(layout))
    vectors = layout.vector_starts[bounds]
    counted = vectors if only is None else np.searchsorted(only, vectors)
    wanted = np.diff(counted)
    kept = np.arange(len(firsts)) if only is None else np.flatnonzero(wanted)
    cells = offsets[firsts[kept]] // run_bytes
    begins = (np.diff(kept, prepend=-2) > 1) | (np.diff(cells, prepend=-1) > 0)
    heads = np.flatnonzero(begins)
    tails = np.append(heads[1:], len(kept))[: len(heads)] - 1
    first, last = kept[heads], kept[tails] + 1
    sums = np.append(0, np.cumsum(wanted))
    return Runs(
        bounds[first], bounds[last], vectors[first], vectors[last], sums[last] - sums[first]
    )
