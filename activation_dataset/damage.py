"""Errors of a dataset that cannot be read, with the advice to verify and repair it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from activation_dataset.folder import Folder
from activation_dataset.tfrecord import CorruptRecordError


class DatasetError(ValueError):
    """Error for a folder without a complete dataset of a known schema version.

    Missing files, and files other than the ones that metadata.json lists, also raise it.
    """


def advice(folder: Folder) -> str:
    """Return the remedy for a dataset with missing or damaged files."""
    return (
        f"Run python -m activation_dataset verify {shlex.quote(folder.location)} to list "
        "all missing and damaged files, and run the job again with the same flags to rewrite them"
    )


@contextmanager
def with_advice(folder: Folder, path: str) -> Iterator[None]:
    """Name a missing or damaged file and the remedy in the error of a reader.

    Args:
        folder: folder of the dataset.
        path: path of the file in the folder.

    Raises:
        DatasetError: if the file is missing.
        CorruptRecordError: if the file is damaged.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"{path} is missing. {advice(folder)}") from None
    except CorruptRecordError as error:
        place = (error.file, error.record, error.offset, error.detail)
        raise CorruptRecordError(*place, advice(folder)) from None
