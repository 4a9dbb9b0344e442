"""Reading records of a local file of which all is known but their activations, by the library."""

from __future__ import annotations

import ctypes
import io
import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from activation_dataset import native
from activation_dataset.checksum import c_extend
from activation_dataset.moments import VectorBlocks
from activation_dataset.statistics_builder import StatisticsBuilder
from activation_dataset.verifying.canonical import NotCanonicalError
from activation_dataset.verifying.record_group import RecordGroup

# As much as stays in a core's cache beside a block of vectors.
_PIECE_BYTES = 1 << 17


class _KnownRecords(ctypes.Structure):
    """As native/known_records.cc has it."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("starts", ctypes.c_void_p),
        ("stops", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("known", ctypes.c_void_p),
    )

    @classmethod
    def of(cls, group: RecordGroup) -> _KnownRecords:
        """Keep the group meanwhile."""
        return cls(
            len(group.ends),
            native.address(group.payload_starts),
            native.address(group.payload_ends),
            native.address(group.ends),
            native.address(group.known),
        )


class _Reading(ctypes.Structure):
    """As native/known_records.cc has it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("file", "offset", "record", "at", "read", "known")),
        *((name, ctypes.c_int64) for name in ("crc", "data_crc", "piece_bytes")),
        ("piece", ctypes.c_void_p),
    )


def descriptor_of(stream: BinaryIO) -> int | None:
    """What the library can read a local file by.

    None where it cannot, or where it would not see what the stream sees.
    """
    if native.library is None or c_extend is None or not isinstance(stream, io.BufferedReader):
        return None
    return stream.fileno() if isinstance(stream.raw, io.FileIO) else None


def read_known_records(
    descriptor: int, groups: Sequence[RecordGroup], bfloat16: bool, statistics: StatisticsBuilder
) -> int:
    """Reads the records of a file, one group behind the other; compares all that is known of them.

    Args:
        descriptor: of the file, read from its first byte on.
        groups: what the file must begin with.
        bfloat16: whether the vectors are bfloat16's bits, else they are float32.
        statistics: the vectors are added to them.

    Returns:
        CRC32C of all groups.

    Raises:
        NotCanonicalError: the file has something else. What was added before is of no use.
        OSError: it cannot be read.
    """
    library = native.library
    assert library is not None
    piece = np.empty(_PIECE_BYTES, np.uint8)
    reading = _Reading(file=descriptor, piece_bytes=len(piece), piece=native.address(piece))
    left = list(reversed(groups))

    def read(vectors: VectorBlocks) -> bool:
        while left:
            found = library.ReadKnownRecords(
                c_extend,
                ctypes.byref(_KnownRecords.of(left[-1])),
                ctypes.byref(reading),
                ctypes.byref(vectors),
            )
            if found == 1:
                return True
            if found == -1:
                raise NotCanonicalError("the records are others than expected")
            if found:
                raise OSError(-1 - found, os.strerror(-1 - found))
            reading.offset += left.pop().size
            reading.record = reading.at = reading.read = reading.known = 0
        return False

    statistics.update_by(read, bfloat16)
    return int(reading.crc)
