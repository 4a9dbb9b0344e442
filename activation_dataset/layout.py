"""The layout of a shard: where its records and vectors are, without ids and tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layout:
    """Records of a shard in its layer files. It takes 8 + 12 x widths bytes for each sample.

    Attributes:
        widths: elements of a vector; those of the residual stream first, then of other sites.
        record_starts: [widths, samples + 1] int64, offset of each record in a layer file; the last
            one is the size of the file.
        heads: [widths, samples] int32, bytes of each record before its activation.
        vector_starts: [samples + 1] int64, number of vectors before each sample; the last one is
            that of all.
    """

    widths: tuple[int, ...]
    record_starts: Numbers
    heads: NDArray[np.int32]
    vector_starts: Numbers

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.vector_starts) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.record_starts.nbytes + self.heads.nbytes + self.vector_starts.nbytes


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of records of a shard.

    Attributes:
        firsts, lasts: [runs] int64, the records first..last - 1 of each run.
        starts, stops: [runs] int64, the vectors start..stop - 1 of each run.
        wanted: [runs] int64, number of wanted vectors.
    """

    firsts: Numbers
    lasts: Numbers
    starts: Numbers
    stops: Numbers
    wanted: Numbers


def runs(layout: Layout, chunk_bytes: int, run_bytes: int, only: Numbers | None) -> Runs:
    """Cut a shard into runs of records, in order, that are read together.

    Chunks are records that begin in the same `chunk_bytes` of the file. Neighboring chunks that
    begin in the same `run_bytes` are one run. Chunks without wanted vectors are left out. Offsets
    are those of the residual stream, so that runs are the same for every site.

    Args:
        layout: layout of the shard.
        chunk_bytes: size of a chunk.
        run_bytes: largest size of a run, a multiple of `chunk_bytes`.
        only: [n] ascending numbers in the shard of the wanted vectors; None for all chunks.
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
