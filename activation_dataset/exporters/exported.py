"""Where exports go, and what is said of them."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from activation_dataset.format import partial_file


class ExportError(ValueError):
    """What was asked for does not fit the dataset, or the folder; says why."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        vectors: written.
        left_out: vectors that did not fill a row or batch of the target's.
        how_to_load: lines of Python.
    """

    vectors: int
    left_out: int
    how_to_load: str


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name only when all is written.

    Raises:
        ExportError: there is something of that name already.
    """
    if path.exists():
        raise ExportError(f"{path} exists already: name a folder that does not, or remove it")
    partial = Path(partial_file(str(path), secrets.token_hex(8)))
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
