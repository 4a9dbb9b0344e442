"""Blocks of large files of tasks, which workers read independently.

A JSON Lines file is cut at line ends and a Parquet file between row groups; every other file is one
block. A block carries the names and ids that repeat in it, so that blocks of any size give the same
items as the whole file.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

from activation_dataset.metadata import InputFile
from corpus.json_records import line_blocks
from corpus.layouts import add_line_ids
from corpus.parse import parse_some_lines, record_lines
from corpus.repeats import Key, OwnIds, Seen
from corpus.tables import TABLE_SUFFIXES, add_row_ids, parse_row_groups, row_group_offsets
from corpus.task import Item
from transforms.decompress import decompressed
from transforms.remote_input import without_query
from transforms.task_file import Measured, TaskFile, open_tasks

BLOCK_BYTES = 64 << 20
"""Minimum size of all parts but the last, constant so that parts do not depend on the engine."""


class TasksChangedError(RuntimeError):
    """An input file that changed after the job had split it."""


@dataclass(frozen=True)
class Part:
    """Consecutive lines or row groups of a file.

    Attributes:
        start: offset of the first byte.
        end: offset after the last byte.
        file_bytes: size of the file.
        crc32c: CRC32C of the bytes.
        first_line: number of the first line, from 1; 0 in a table.
        names: keys of the names in this part that earlier parts also have.
        ids: keys of the ids in this part that earlier parts also have.
    """

    start: int
    end: int
    file_bytes: int
    crc32c: int
    first_line: int
    names: frozenset[Key]
    ids: frozenset[Key]


@dataclass(frozen=True)
class Block:
    """A file, or a part of a file, that one worker reads.

    Attributes:
        path: path of the file; may hold bytes that are not UTF-8.
        source: path of the file in sample ids.
        part: part of the file; None for the whole file.
    """

    path: bytes
    source: str
    part: Part | None = None


def is_table(path: str) -> bool:
    """Return True if the name is that of a table."""
    return without_query(path).lower().endswith(TABLE_SUFFIXES)


def split_file(
    path: str, source: str, text_field: str | None, block_bytes: int
) -> Iterator[Block | InputFile]:
    """Yield the blocks of a file and, if it has parts, its size and digest.

    A small file, or a file that cannot be split, is one block. This function then reads at most the
    beginning of the file and the footer of a table.

    Args:
        path: path of the file.
        source: name of the file in its items.
        text_field: only content to read; None to read any known content.
        block_bytes: minimum size of all parts but the last.

    Raises:
        TasksUnreadableError: if the file cannot be opened or read.
    """
    encoded = os.fsencode(path)
    found = None
    with open_tasks(path) as file:
        if file.seek(0, os.SEEK_END) > block_bytes:
            if is_table(path):
                found = _table_parts(file, source, text_field, block_bytes)
            elif decompressed(file, without_query(path)) is None:  # type: ignore[arg-type]
                found = _line_parts(file, source, text_field, block_bytes)
    if found is None:
        yield Block(encoded, source)
        return
    parts, digest = found
    yield from (Block(encoded, source, part) for part in parts)
    yield digest


def read_part(path: str, source: str, text_field: str | None, part: Part) -> Iterator[Item]:
    """Yield the items of a part of a file.

    Raises:
        TasksChangedError: if the content has changed since `split_file`; raised no later than after
            the last item.
        TasksUnreadableError: if the file cannot be opened or read.
    """
    names, ids = Seen(part.names), Seen(part.ids)
    with open_tasks(path) as file:
        file_bytes = file.seek(0, os.SEEK_END)
        if file_bytes != part.file_bytes:
            raise _changed(path, f"it had {part.file_bytes} bytes, now {file_bytes}")
        file.seek(part.start)
        measured = Measured(file.take(part.end - part.start))
        if is_table(path):
            within = range(part.start, part.end)
            yield from parse_row_groups(file, source, text_field, within, names, ids)  # type: ignore[arg-type]
            file.seek(part.start)
            _exhaust(measured)
        else:
            first = part.first_line
            yield from parse_some_lines(measured, source, text_field, first, names, ids)
    if measured.crc32c != part.crc32c:
        raise _changed(path, f"between its bytes {part.start} and {part.end}")


def _changed(path: str, how: str) -> TasksChangedError:
    return TasksChangedError(
        f"{path}: changed since the job first read it ({how}); run the job again, and do not write "
        "to the files of --tasks_file while it runs"
    )


def _line_parts(
    file: TaskFile, source: str, text_field: str | None, block_bytes: int
) -> tuple[list[Part], InputFile] | None:
    """Return the parts of a JSON Lines file, and its size and digest; None for other files."""
    own = OwnIds("line")
    parts = list(_cut_lines(file, source, text_field, block_bytes, own))
    if own.may_repeat:
        parts = list(_cut_lines(file, source, text_field, block_bytes))
    return (parts, file.digest_rest(source)) if parts else None


def _cut_lines(
    file: TaskFile, source: str, text_field: str | None, block_bytes: int, own: OwnIds | None = None
) -> Iterator[Part]:
    """Yield the parts of a JSON Lines file in one pass; nothing for other files.

    Args:
        file: the open file.
        source: name of the file in its items.
        text_field: only content to read; None to read any known content.
        block_bytes: minimum size of all parts but the last.
        own: collects the ids, without checks of the rest of the records. The parts end early if the
            ids may repeat. None to check all records and find repeated names and ids.
    """
    file_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    found = record_lines(file, source)  # type: ignore[arg-type]
    if found is None:
        return
    end, chunks = found
    line, names, ids = 1, Seen(), Seen()
    for block in line_blocks(chunks, block_bytes):
        measured = Measured(block)
        if own is None:
            _exhaust(parse_some_lines(measured, source, text_field, line, names, ids))
        else:
            add_line_ids(measured, own)
            if own.may_repeat:
                return
        start, end = end, end + measured.bytes
        met = names.end_block(), ids.end_block()
        yield Part(start, end, file_bytes, measured.crc32c, line, *met)
        line += measured.lines


def _table_parts(
    file: TaskFile, source: str, text_field: str | None, block_bytes: int
) -> tuple[list[Part], InputFile] | None:
    """Return the parts of a Parquet file, and its size and digest; None for other tables."""
    offsets = row_group_offsets(file, text_field)  # type: ignore[arg-type]
    bounds = [0]
    for offset in offsets[1:]:
        if offset - bounds[-1] >= block_bytes:
            bounds.append(offset)
    if len(bounds) == 1:
        return None
    bounds.append(file.seek(0, os.SEEK_END))
    # Measured before the ids are read, so that reading a part finds a change in between.
    file.seek(0)
    ranges = [Measured(file.take(end - start)) for start, end in itertools.pairwise(bounds)]
    for measured in ranges:
        _exhaust(measured)
    digest = file.digest_rest(source)
    own = OwnIds("row")
    add_row_ids(file, own)  # type: ignore[arg-type]
    parts, names, ids = list[Part](), Seen(), Seen()
    for (start, end), measured in zip(itertools.pairwise(bounds), ranges, strict=True):
        if own.may_repeat:
            within = range(start, end)
            _exhaust(parse_row_groups(file, source, text_field, within, names, ids))  # type: ignore[arg-type]
        met = names.end_block(), ids.end_block()
        parts.append(Part(start, end, bounds[-1], measured.crc32c, 0, *met))
    return parts, digest


def _exhaust(items: Iterator[object]) -> None:
    for _ in items:
        pass
