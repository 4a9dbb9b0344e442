"""Survey of a dataset: norms and origins of its vectors, and similarity of its sites."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from activation_dataset.index import ShardIndex
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reading.shards import Chunk, Places
from activation_dataset.reporting.similarity import Likeness, compare_sites
from activation_dataset.reporting.summary import OUTLIER_FACTORS, quantiles
from activation_dataset.sites import Site
from activation_dataset.storage_dtype import to_float32
from activation_dataset.verify import check_listed

# Bounds of a survey that does not read everything: number of shards, vectors of each site, and
# bytes of the vectors of all sites. The last two bounds are rounded up to whole samples.
MAX_SHARDS = 64
MAX_VECTORS = 1 << 15
MAX_BYTES = 1 << 30

_LEAST_COMPARED, _MOST_COMPARED = 16, 512
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Survey:
    """Findings of a survey, which reads whole samples of some shards.

    Attributes:
        shards: number of surveyed shards.
        lengths: [prompts] int64, number of tokens of each prompt of these shards.
        repeated: number of prompts with exactly the tokens of an earlier prompt.
        numbers: [n] int64, numbers of the vectors that were read at each site.
        places: samples and tokens of these vectors.
        factors: [sites, n] float32, norms in medians of the site; NaN for a non-finite vector, 0 if
            the median is 0.
        likeness: comparison of the sites on vectors that are not outliers at any site; None if
            there is only one site, or too few vectors.
    """

    shards: int
    lengths: NDArray[np.int64]
    repeated: int
    numbers: NDArray[np.int64]
    places: Places
    factors: NDArray[np.float32]
    likeness: Likeness | None

    def mean_factors(self, groups: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """Return the mean of the finite factors of each group.

        Args:
            groups: [n] int64, group of each vector; negative for vectors without a group.
            count: number of groups.

        Returns:
            [sites, count] float64, NaN for a group without finite factors.
        """
        means = np.full((len(self.factors), count), np.nan)
        for factors, row in zip(self.factors, means, strict=True):
            kept = np.isfinite(factors) & (groups >= 0)
            counts = np.bincount(groups[kept], minlength=count)
            sums = np.bincount(groups[kept], factors[kept], minlength=count)
            np.divide(sums, counts, out=row, where=counts > 0)
        return means


def survey(dataset: ActivationDataset, whole: bool = False, seed: int = 0) -> Survey:
    """Read a dataset site by site, within the bounds of this module.

    Args:
        dataset: dataset to read.
        whole: True to ignore the bounds, check every file against metadata.json first, and read
            every vector.
        seed: seed of the choice of vectors in a bounded survey.

    Raises:
        CorruptRecordError: if a record is damaged.
        DatasetError: if a file is missing, or with `whole`, is not the one in metadata.json.
    """
    if whole:
        entries = [entry for shard in dataset.metadata.shards for entry in shard.all_files]
        check_listed(dataset.folder, entries)
    rng = np.random.default_rng(seed)
    shards = list(range(len(dataset.metadata.shards)))
    if not whole and len(shards) > MAX_SHARDS:
        shards = sorted(rng.permutation(shards)[:MAX_SHARDS].tolist())
    indexes = [dataset.index(shard) for shard in shards]
    chunks = [chunk for shard in shards for chunk in dataset.chunks(shard)]
    if not whole:
        kinds = map(dataset.metadata.run.record_kind, dataset.sites)
        vector_bytes = sum(kind.vector_bytes for kind in kinds)
        chunks = _bounded(chunks, min(MAX_VECTORS, MAX_BYTES // vector_bytes), rng)
    numbers = np.concatenate([_NONE, *(np.array(each.numbers) for each in chunks)])
    compared = np.sort(rng.permutation(len(numbers))[:_MOST_COMPARED])
    factors = np.zeros((len(dataset.sites), len(numbers)), np.float32)
    usual = np.ones(len(compared), np.bool_)
    grams = []
    for row, (site, statistics) in zip(factors, dataset.metadata.statistics.items(), strict=True):
        norms, vectors = _read(dataset, site, chunks, compared)
        (median,) = quantiles(statistics, 0.5)
        row[:] = norms / median if median else np.where(np.isnan(norms), np.nan, 0)
        usual &= row[compared] < OUTLIER_FACTORS[0]  # False for NaN.
        grams.append(vectors @ vectors.T)
    comparable = len(grams) > 1 and np.count_nonzero(usual) >= _LEAST_COMPARED
    prompts = [digest for index in indexes for digest in _digests(index)]
    return Survey(
        shards=len(shards),
        lengths=np.concatenate([_NONE, *(each.token_counts for each in indexes)]),
        repeated=len(prompts) - len(set(prompts)),
        numbers=numbers,
        places=dataset.locate(numbers),
        factors=factors,
        likeness=compare_sites(grams, usual) if comparable else None,
    )


def _bounded(chunks: Sequence[Chunk], bound: int, rng: np.random.Generator) -> list[Chunk]:
    """Return randomly chosen chunks, in order, with just enough vectors to reach the bound."""
    order = rng.permutation(len(chunks))
    ends = np.cumsum([len(chunks[place].numbers) for place in order.tolist()])
    chosen = order[: np.searchsorted(ends, bound) + 1]
    return [chunks[place] for place in sorted(chosen.tolist())]


def _read(
    dataset: ActivationDataset, site: Site, chunks: Sequence[Chunk], compared: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Read the norms of a site, and the vectors to compare with other sites.

    Args:
        dataset: dataset to read.
        site: site to read.
        chunks: chunks to read.
        compared: [m] int64, ascending indices of the vectors to compare, among all vectors read.

    Returns:
        Norms [n] float64, NaN for a non-finite vector, and vectors [m, hidden] float32 minus the
        mean of the site, 0 for a non-finite vector.
    """
    mean = dataset.metadata.statistics[site].mean.astype(np.float32)
    norms = np.empty(sum(len(chunk.numbers) for chunk in chunks))
    rows = np.zeros((len(compared), len(mean)), np.float32)
    start = 0
    for _, stored in dataset.read_chunks(chunks, [site]):
        values = to_float32(stored[0])
        end = start + len(values)
        squares = np.einsum("nh,nh->n", values, values, dtype=np.float64)
        norms[start:end] = np.where(np.isfinite(squares), np.sqrt(squares), np.nan)
        first, last = np.searchsorted(compared, [start, end]).tolist()
        rows[first:last] = values[compared[first:last] - start] - mean
        start = end
    rows[~np.isfinite(rows).all(axis=1)] = 0
    return norms, rows


def _digests(index: ShardIndex) -> list[bytes]:
    """Return a digest of the tokens of each prompt of a shard."""
    ends = index.token_ends.tolist()
    return [
        hashlib.blake2b(index.token_ids[start:end].tobytes(), digest_size=16).digest()
        for start, end in zip([0, *ends], ends, strict=False)
    ]
