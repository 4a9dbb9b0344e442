"""Vectors in the requested dtype and scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from activation_dataset.metadata import Metadata
from activation_dataset.reading.shards import Places, Shards
from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics
from activation_dataset.storage_dtype import StorageDtype, to_float32

Dtype = Literal["float32", "bfloat16", "bits"]
"""Dtype of values.

"float32" is exact for every storage dtype. "bfloat16", the dtype of ml_dtypes, is not available for
datasets stored in float32; from 8-bit storage dtypes, values are rounded after scaling. "bits", the
bits of bfloat16 as uint16, needs a dataset stored in bfloat16."""

Normalize = Literal["sae_lens", "dictionary_learning"]
"""Library whose scaling of vectors is applied; see `normalization_factor`."""

# Rows that fit into a core's cache.
_ROWS = 128


@dataclass(frozen=True)
class VectorFormat:
    """Sites, dtype and scale of the vectors that a reader yields.

    Attributes:
        sites: sites of the vectors.
        single: True if values are [n, hidden], False if they are [n, sites, hidden].
        hidden: number of elements of a vector.
        dtype: numpy dtype of the values.
        factors: for each site, the factor that multiplies its vectors.
    """

    sites: tuple[Site, ...]
    single: bool
    hidden: int
    dtype: np.dtype[Any]
    factors: tuple[float, ...]

    @classmethod
    def of(
        cls,
        metadata: Metadata,
        sites: Site | Sequence[Site],
        dtype: Dtype,
        normalize: Normalize | None,
    ) -> VectorFormat:
        """Check a request against a dataset.

        Raises:
            KeyError: if the dataset does not have a site.
            ValueError: if another argument is not allowed for this dataset.
        """
        single = isinstance(sites, int | str)
        named = (sites,) if isinstance(sites, int | str) else tuple(sites)
        if not named:
            raise ValueError("sites is empty, expected at least one")
        run = metadata.run
        chosen = tuple(map(run.site, named))
        widths = {site: run.width(site) for site in chosen}
        if len(set(widths.values())) > 1:
            raise ValueError(
                f"sites have vectors of several widths, {widths}: read each width separately; with "
                "the same seed, window and filters, the same tokens come in the same order"
            )
        if normalize is not None and dtype != "float32":
            raise ValueError(f"dtype is {dtype!r}, expected 'float32' with normalize")
        factors = tuple(normalization_factor(metadata.statistics[s], normalize) for s in chosen)
        given = element_dtype(dtype, run.storage_dtype)
        return cls(chosen, single, widths[chosen[0]], given, factors)

    def shape(self, count: int) -> tuple[int, ...]:
        """Return the shape of the values of `count` vectors."""
        return (count, self.hidden) if self.single else (count, len(self.sites), self.hidden)

    def fill(
        self, values: NDArray[Any], stored: NDArray[Any], rows: NDArray[np.int64] | None = None
    ) -> None:
        """Convert stored vectors into `values`.

        Args:
            values: values to fill; `shape` returns their shape.
            stored: [sites, n, row elements] stored vectors.
            rows: [k] rows of the vectors to convert; None for all.
        """
        for place, factor in enumerate(self.factors):
            _convert(values if self.single else values[:, place], stored[place], rows, factor)


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of one or more sites, with the tokens that they belong to.

    The number of a vector is its position in the order of the files, the same at every site.

    Attributes:
        values: [n, hidden], or [n, sites, hidden] if a sequence of sites was requested; a numpy
            array, float32 by default, or a jax.Array from `DeviceBatches`.
        numbers: [n] int64, numbers of the vectors.
        dataset: dataset of the vectors.
    """

    values: Any
    numbers: NDArray[np.int64]
    dataset: Shards = field(repr=False)

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def places(self) -> Places:
        """Samples, positions, tokens and cells of the vectors, looked up on first use."""
        return self.dataset.locate(self.numbers)

    @property
    def sample_ids(self) -> list[str]:
        """Sample id of each vector, [n]."""
        return [self.dataset.sample_id(sample) for sample in self.places.samples.tolist()]


def element_dtype(dtype: Dtype, storage_dtype: StorageDtype) -> np.dtype[Any]:
    """Return the numpy dtype of values.

    Raises:
        ValueError: if the dtype is unknown, or not available for the storage dtype.
        ImportError: if the dtype needs ml_dtypes, which is not installed.
    """
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(get_args(Dtype))}")
    if dtype == "float32":
        return np.dtype(np.float32)
    if storage_dtype == "float32" or (dtype == "bits" and storage_dtype != "bfloat16"):
        raise ValueError(f"dtype {dtype!r} needs a dataset stored in bfloat16, not {storage_dtype}")
    if dtype == "bits":
        return np.dtype(np.uint16)
    try:
        bfloat16: np.dtype[Any] = np.dtype(import_module("ml_dtypes").bfloat16)
    except ImportError as error:
        raise ImportError(
            'dtype "bfloat16" needs ml_dtypes: pip install ml_dtypes, or request "bits", which '
            "returns the same bits as uint16"
        ) from error
    return bfloat16


def normalization_factor(statistics: LayerStatistics, normalize: Normalize | None) -> float:
    """Return the factor that multiplies the vectors of a site.

    For "sae_lens", the factor is sqrt(hidden) / mean norm, as with
    `normalize_activations="expected_average_only_in"`; the mean norm becomes sqrt(hidden). For
    "dictionary_learning", it is 1 / sqrt(mean squared norm), as with `normalize_activations=True`;
    the mean squared norm becomes 1. For None, it is 1.

    Raises:
        ValueError: if `normalize` is unknown, or the mean norm of the site is 0.
    """
    if normalize is None:
        return 1.0
    if normalize not in get_args(Normalize):
        raise ValueError(f"normalize {normalize!r} is not one of {', '.join(get_args(Normalize))}")
    if not statistics.mean_norm > 0:
        raise ValueError(
            "normalize needs a mean norm above 0, but all vectors of the site are 0 or not finite"
        )
    if normalize == "sae_lens":
        return float(np.sqrt(statistics.hidden)) / statistics.mean_norm
    return 1.0 / float(np.sqrt(statistics.mean_squared_norm))


def _convert(
    out: NDArray[Any], stored: NDArray[Any], rows: NDArray[np.int64] | None, factor: float
) -> None:
    """Convert stored rows to `out`, [k, hidden], in blocks that fit into the cache."""
    scratch = np.empty((_ROWS, stored.shape[1]), stored.dtype)
    for start in range(0, len(out), _ROWS):
        part = out[start : start + _ROWS]
        if rows is None:
            taken = stored[start : start + _ROWS]
        else:
            taken = scratch[: len(part)]
            # Any other mode makes numpy copy once more.
            np.take(stored, rows[start : start + _ROWS], axis=0, out=taken, mode="clip")
        if stored.itemsize == 1:
            part[...] = to_float32(taken)
        elif part.itemsize == stored.itemsize:
            part.view(stored.dtype)[...] = taken
        else:  # from bfloat16 to float32
            words = part.view(np.uint32)
            np.copyto(words, taken)
            np.left_shift(words, 16, out=words)
        if factor != 1.0:
            np.multiply(part, np.float32(factor), out=part)
