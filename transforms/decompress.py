"""Content of compressed files up to the first damage."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa

from transforms.storage import StorageError

_STEP_BYTES = 1 << 12
"""Compressed bytes of one step. Damage costs about as many decompressed bytes."""


class Decompressed:
    """Decompressed content that ends where the file is damaged.

    Attributes:
        damage: error of the decompressor that ended the content, if any.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.damage: Exception | None = None

    def read(self, size: int) -> bytes:
        """Return at least `size` bytes, or fewer at the end."""
        pieces, held = list[bytes](), 0
        try:
            while held < size and not self.damage and (piece := next(self._pieces, b"")):
                pieces.append(piece)
                held += len(piece)
        except StorageError:
            raise
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            self.damage = error
        return b"".join(pieces)


def decompressed(file: BinaryIO, path: str) -> Decompressed | None:
    """Return the content of a file with the suffix of a compressed file; None for others."""
    pieces_of = _PIECES.get(os.path.splitext(path)[1].lower())
    return pieces_of and Decompressed(pieces_of(file))


class _Sips:
    """A file that is read in small steps."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, _STEP_BYTES) if size >= 0 else _STEP_BYTES)

    def close(self) -> None:
        """Do nothing, because the caller closes the file."""


def _gzip_pieces(file: BinaryIO) -> Iterator[bytes]:
    return iter(partial(gzip.GzipFile(fileobj=file).read1, _STEP_BYTES), b"")


def _zstd_pieces(file: BinaryIO) -> Iterator[bytes]:
    stream = pa.CompressedInputStream(pa.PythonFile(_Sips(file), "r"), "zstd")
    # An error loses the bytes that the same call has read, so calls are short.
    return iter(partial(stream.read, _STEP_BYTES >> 4), b"")


def _member_pieces(new: Callable[[], Any], file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of every member; Python's readers ignore everything after a bad one."""
    data = file.read(_STEP_BYTES)
    while data:
        decompressor = new()
        while not decompressor.eof:
            if not data and decompressor.needs_input and not (data := file.read(_STEP_BYTES)):
                raise EOFError("it is cut off")
            if piece := decompressor.decompress(data, _STEP_BYTES):
                yield piece
            data = b""
        data = decompressor.unused_data.lstrip(b"\0")
        while not data and (more := file.read(_STEP_BYTES)):
            data = more.lstrip(b"\0")


_PIECES: Mapping[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    ".gz": _gzip_pieces,
    ".bz2": partial(_member_pieces, bz2.BZ2Decompressor),
    ".xz": partial(_member_pieces, lzma.LZMADecompressor),
    ".zst": _zstd_pieces,
}
