"""Exporters of sites to files that trainers of sparse autoencoders load."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from activation_dataset.format import partial_file
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reading.vectors import Dtype, VectorFormat, Vectors
from activation_dataset.sites import Site
from activation_dataset.verify import check_listed

FILE_BYTES = 1 << 28
"""Approximate size of the files of an export."""


class ExportError(ValueError):
    """Error for a request that does not fit the dataset or the output folder."""


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        vectors: number of exported vectors of each site.
        left_out: number of vectors of each site that do not fill a row or batch.
        how_to_load: Python code that loads the first site.
    """

    vectors: int
    left_out: int
    how_to_load: str


@contextmanager
def new_folder(path: Path, dataset: ActivationDataset, sites: Sequence[Site]) -> Iterator[Path]:
    """Yield a temporary folder and rename it to `path` when all files are written.

    Args:
        path: folder to create.
        dataset: dataset to export. Its prompts are checked against metadata.json first.
        sites: sites to export. Their files are checked too.

    Raises:
        ExportError: if `path` exists.
        DatasetError: if a file is not the one that metadata.json lists, or changes meanwhile.
    """
    if path.exists():
        raise ExportError(f"{path} already exists: choose another folder, or remove it")
    shards = dataset.metadata.shards
    entries = [shard.prompts for shard in shards]
    entries += [shard.files[site] for site in sites for shard in shards]
    stamps = dataset.stamps(entry.path for entry in entries)
    check_listed(dataset.folder, entries)
    partial = Path(partial_file(str(path), secrets.token_hex(8)))
    partial.mkdir(parents=True)
    try:
        yield partial
        dataset.check_unchanged(stamps)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def in_parts(dataset: ActivationDataset, site: Site, size: int, dtype: Dtype) -> Iterator[Vectors]:
    """Yield all vectors of a site in order, `size` at a time. The last part may be smaller.

    The parts share one buffer: each part is valid only until the next one.
    """
    wanted = VectorFormat.of(dataset.metadata, site, dtype, None)
    values = np.empty(wanted.shape(min(size, dataset.num_vectors)), wanted.dtype)
    first = filled = 0
    for block in dataset.blocks(site, dtype=dtype):
        start = 0
        while start < len(block):
            part = block.values[start : start + size - filled]
            values[filled : filled + len(part)] = part
            filled += len(part)
            start += len(part)
            if filled == size:
                yield Vectors(values, np.arange(first, first + size), dataset)
                first, filled = first + size, 0
    if filled:
        yield Vectors(values[:filled], np.arange(first, first + filled), dataset)


def required(library: str, reason: str) -> Any:
    """Import a library that an export needs.

    Raises:
        ImportError: if the library is not installed. The message says how to install it.
    """
    try:
        return import_module(library)
    except ImportError as error:
        package = library.partition(".")[0]
        raise ImportError(f"{reason}: pip install {package}") from error
