"""Stored elements as a reader wants them: widened, scaled, or as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from activation_dataset import native
from activation_dataset.format import StorageDtype
from activation_dataset.metadata import Metadata
from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics

Dtype = Literal["float32", "bfloat16", "bits"]
"""How elements are given: "float32", exact whatever the storage dtype; "bfloat16", as ml_dtypes has
it; "bits", bfloat16's bits as uint16. The last two need a dataset that is stored in bfloat16."""

Normalise = Literal["sae_lens", "dictionary_learning"]
"""Whose scaling of the vectors is applied; see `normalising_factor`."""

# Rows that are gathered at a time: they fit into a core's cache.
_GATHERED_ROWS = 128


@dataclass(frozen=True)
class Wanted:
    """What a reader wants of each vector.

    Attributes:
        layers: the layers, in the order in which they are wanted.
        single: whether one layer was asked for by itself, so that values are [n, hidden]; else
            they are [n, layers, hidden].
        dtype: of the values.
        factors: what the vectors of each layer are multiplied with.
    """

    layers: tuple[Site, ...]
    single: bool
    dtype: np.dtype[Any]
    factors: tuple[float, ...]

    @classmethod
    def of(
        cls,
        metadata: Metadata,
        layers: Site | Sequence[Site],
        dtype: Dtype,
        normalise: Normalise | None,
    ) -> Wanted:
        """Checks what is asked for against what there is.

        Raises:
            KeyError: a layer is not in the dataset.
            ValueError: a dtype or normalisation that cannot be had; says why.
        """
        single = isinstance(layers, int | str)
        named = (layers,) if isinstance(layers, int | str) else tuple(layers)
        if not named:
            raise ValueError("no layers were asked for")
        chosen = tuple(map(metadata.run.site, named))
        if normalise is not None and dtype != "float32":
            raise ValueError(f"normalised values are float32, not {dtype!r}")
        factors = tuple(normalising_factor(metadata.statistics[each], normalise) for each in chosen)
        return cls(chosen, single, element_dtype(dtype, metadata.run.storage_dtype), factors)

    def shape(self, count: int, hidden: int) -> tuple[int, ...]:
        """Shape of the values of `count` vectors."""
        return (count, hidden) if self.single else (count, len(self.layers), hidden)

    def layer_of(self, values: NDArray[Any], place: int) -> NDArray[Any]:
        """[n, hidden]: the part of the values that the layer at a place of `layers` goes to."""
        return values if self.single else values[:, place]


def element_dtype(dtype: Dtype, storage_dtype: StorageDtype) -> np.dtype[Any]:
    """The numpy dtype of the elements.

    Raises:
        ValueError: the dtype is unknown, or not to be had from that storage dtype.
        ImportError: "bfloat16", and ml_dtypes is not installed.
    """
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(get_args(Dtype))}")
    if dtype == "float32":
        return np.dtype(np.float32)
    if storage_dtype != "bfloat16":
        raise ValueError(f"dtype {dtype!r} needs a dataset stored in bfloat16, not {storage_dtype}")
    if dtype == "bits":
        return np.dtype(np.uint16)
    try:
        bfloat16: np.dtype[Any] = np.dtype(import_module("ml_dtypes").bfloat16)
    except ImportError as error:
        raise ImportError(
            'dtype "bfloat16" needs numpy to know it: pip install ml_dtypes, or ask for "bits", '
            "which are the same as uint16"
        ) from error
    return bfloat16


def normalising_factor(statistics: LayerStatistics, normalise: Normalise | None) -> float:
    """What a layer's vectors are multiplied with.

    "sae_lens": sqrt(hidden) / mean norm, so that the mean norm becomes sqrt(hidden), as with its
    `normalize_activations="expected_average_only_in"`. "dictionary_learning": 1 / sqrt(mean squared
    norm), so that the mean squared norm becomes 1, as with its `normalize_activations=True`.

    Raises:
        ValueError: it is neither, or the layer has no norm to divide by.
    """
    if normalise is None:
        return 1.0
    if normalise not in get_args(Normalise):
        raise ValueError(f"normalise {normalise!r} is not one of {', '.join(get_args(Normalise))}")
    if not statistics.mean_norm > 0:
        raise ValueError("the layer has no vectors, or all are 0: nothing to normalise by")
    if normalise == "sae_lens":
        return float(np.sqrt(statistics.hidden)) / statistics.mean_norm
    return 1.0 / float(np.sqrt(statistics.mean_squared_norm))


def put(stored: NDArray[Any], out: NDArray[Any], factor: float = 1.0) -> None:
    """Writes stored elements as the dtype of `out`.

    Args:
        stored: [n, hidden] float32, or uint16 with bfloat16's bits.
        out: [n, hidden], of a dtype that `element_dtype` gives for them.
        factor: multiplies them; 1 unless `out` is float32.
    """
    if _library_takes(stored, out):
        _gather_by_library(stored, None, out, factor)
        return
    if stored.dtype.itemsize == out.dtype.itemsize:
        out.view(stored.dtype)[...] = stored
    else:
        _widening()(stored, out)
    if factor != 1.0:
        np.multiply(out, np.float32(factor), out=out)


def gather(
    stored: NDArray[Any], rows: NDArray[np.int64], out: NDArray[Any], factor: float = 1.0
) -> None:
    """Writes chosen rows of stored elements as the dtype of `out`.

    Args:
        stored: [n, hidden], as for `put`.
        rows: [k] int64, which of them, 0..n - 1.
        out: [k, hidden], as for `put`.
        factor: as for `put`.
    """
    if _library_takes(stored, out):
        _gather_by_library(stored, np.ascontiguousarray(rows), out, factor)
        return
    scratch = np.empty((_GATHERED_ROWS, stored.shape[1]), stored.dtype)
    for start in range(0, len(rows), _GATHERED_ROWS):
        chosen = rows[start : start + _GATHERED_ROWS]
        taken = scratch[: len(chosen)]
        # With any other mode, numpy would copy once more.
        np.take(stored, chosen, axis=0, out=taken, mode="clip")
        put(taken, out[start : start + len(chosen)], factor)


def scatter(stored: NDArray[Any], out: NDArray[Any], rows: NDArray[np.int64]) -> None:
    """Writes stored elements as they are into chosen rows.

    Args:
        stored: [k, hidden].
        out: [n, hidden], of the same dtype, C-contiguous.
        rows: [k] int64, which rows of `out`, 0..n - 1, none twice.
    """
    if native.library is None or not stored.flags.c_contiguous:
        out[rows] = stored
        return
    native.library.Scatter(
        native.address(stored),
        stored.shape[1] * stored.itemsize,
        native.address(np.ascontiguousarray(rows)),
        len(rows),
        native.address(out),
    )


def _library_takes(stored: NDArray[Any], out: NDArray[Any]) -> bool:
    return (
        native.library is not None
        and stored.flags.c_contiguous
        and out.strides[1] == out.dtype.itemsize
    )


def _gather_by_library(
    stored: NDArray[Any], rows: NDArray[np.int64] | None, out: NDArray[Any], factor: float
) -> None:
    assert native.library is not None
    native.library.Gather(
        native.address(stored),
        stored.dtype.itemsize == 2,
        stored.shape[1],
        None if rows is None else native.address(rows),
        len(out),
        native.address(out),
        out.strides[0],
        out.dtype.itemsize == 4,
        factor,
    )


@cache
def _widening() -> Callable[[NDArray[Any], NDArray[Any]], None]:
    """The fastest of the ways to widen bfloat16 that are at hand; all give the same bits."""
    try:
        bfloat16 = import_module("ml_dtypes").bfloat16
    except ImportError:
        return _shift

    def cast(bits: NDArray[Any], out: NDArray[Any]) -> None:
        np.copyto(out, bits.view(bfloat16))

    return cast


def _shift(bits: NDArray[Any], out: NDArray[Any]) -> None:
    words = out.view(np.uint32)
    np.copyto(words, bits)
    np.left_shift(words, 16, out=words)
