"""Read tasks and documents from tables: Parquet files, and Arrow files saved by Hugging Face.

A row is a record, like a line of a JSON Lines file (see `corpus.parse`), and its columns are the
keys. The id of a row without an id is "row-000012" (from 0). A null counts as absent, at any depth,
because Arrow gives each object of a column the keys of all objects. Other columns are not read.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import ipc, parquet

from corpus.json_records import GIT_LFS, MAX_RECORD_BYTES
from corpus.layouts import WRAPPERS, record_items
from corpus.repeats import OwnIds, Seen, without_repeated_ids
from corpus.task import Item, Rejection
from corpus.validate import CONTENT_KEYS, ID_KEYS, keys_to_read

TABLE_SUFFIXES = (".parquet", ".arrow")

_PARQUET = b"PAR1"
_ARROW_FILE = b"ARROW1"
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
_ROWS_AT_ONCE = 64
_READ_BYTES = 1 << 20

# Errors that pyarrow raises for damaged content.
_CORRUPT = (pa.ArrowException, OSError, UnicodeDecodeError)


def parse_table(stream: BinaryIO, source: str, text_field: str | None = None) -> Iterator[Item]:
    """Yield every task and document of a table, and a `RejectedTask` for each unusable row.

    Memory is bounded by one batch of the file's rows.

    Args:
        stream: seekable bytes of the file, read from the beginning; stays open.
        source: path of the file relative to the common root of all inputs; part of every item.
        text_field: only content to read, as in `corpus.documents`; None to read any known content.
    """
    items = _items(_rows(stream, text_field), source, text_field, Seen())
    yield from without_repeated_ids(items, source, Seen())


def parse_row_groups(
    stream: BinaryIO,
    source: str,
    text_field: str | None,
    within: range,
    names: Seen,
    ids: Seen,
) -> Iterator[Item]:
    """Yield the items of some row groups of a Parquet file, the same as from `parse_table`.

    Args:
        stream: the file, as in `parse_table`.
        source: name of the file, as in `parse_table`.
        text_field: only content to read, as in `parse_table`.
        within: byte offsets. Only row groups that begin in this range are read.
        names: names in earlier rows. Names in these rows are added.
        ids: ids in earlier rows. Ids in these rows are added.
    """
    items = _items(_rows(stream, text_field, within), source, text_field, names)
    yield from without_repeated_ids(items, source, ids)


def row_group_offsets(stream: BinaryIO, text_field: str | None) -> list[int]:
    """Return the byte offset of each row group of a Parquet file, in order.

    Returns an empty list for other tables, and for tables that `parse_table` rejects as a whole or
    whose row groups are not in order.
    """
    try:
        if not _start(stream).startswith(_PARQUET):
            return []
        table = _parquet(stream)
        _used(table.schema_arrow, text_field)
        groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
        offsets = list(map(_offset, groups))
    except Rejection:
        return []
    except _CORRUPT as error:
        _corrupt(error, "at all")
        return []
    # The format allows row groups in any order, although common writers keep them in order.
    in_order = all(one < other for one, other in itertools.pairwise(offsets))
    return offsets if in_order and table.metadata.num_rows else []


def add_row_ids(stream: BinaryIO, own: OwnIds) -> None:
    """Add the ids of the rows of a Parquet file, reading only the id columns."""
    table = _parquet(stream)
    columns = [name for name in table.schema_arrow.names if name in ID_KEYS]
    try:
        if columns:
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    own.add(row)
    except _CORRUPT as error:
        _corrupt(error, "at all")
        own.may_repeat = True


_Row = tuple[str, dict[str, object] | Rejection]
"""Default id and row, or rejection of a row. The id is "" if several rows are rejected."""


def _items(
    rows: Iterator[_Row], source: str, text_field: str | None, names: Seen
) -> Iterator[Item]:
    for row_id, row in rows:
        if isinstance(row, Rejection):
            yield row.of(source, row_id)
        else:
            yield from record_items(row, source, row_id, names, text_field)


def _rows(stream: BinaryIO, text_field: str | None, within: range | None = None) -> Iterator[_Row]:
    """Yield the rows of a table, or of the row groups that begin `within` a range of offsets."""
    is_empty = within is None
    try:
        start = _start(stream)
        if not start:
            raise Rejection("empty_file", "the file has 0 bytes")
        if start == GIT_LFS:
            detail = "a Git LFS pointer instead of the table; run git lfs pull"
            raise Rejection("bad_table", detail)
        if start.startswith(_PARQUET):
            rows = _parquet_rows(stream, text_field, within)
        else:
            batches = _arrow_batches(stream, text_field, is_file=start.startswith(_ARROW_FILE))
            rows = _numbered(batches, 0)
        for row in rows:
            is_empty = False
            yield row
        if is_empty:
            raise Rejection("empty_file", "the table has no rows")
    except Rejection as rejection:
        yield "", rejection
    except _CORRUPT as error:
        yield "", _corrupt(error, "at all")


def _numbered(
    batches: Iterator[pa.RecordBatch], first: int, end: int | None = None
) -> Iterator[_Row]:
    """Yield rows, numbered from `first` to before `end` (None if unknown), up to any damage."""
    number = first
    try:
        for batch in batches:
            # `nbytes` may crash the process if the bytes are damaged.
            is_large = batch.get_total_buffer_size() > MAX_RECORD_BYTES
            for index in range(len(batch)):
                if number == end:
                    raise pa.ArrowInvalid("the table has more rows than its footer states")
                row: dict[str, object] | Rejection
                try:
                    row = _row(batch.slice(index, 1), is_large)
                except Rejection as rejection:
                    row = rejection
                yield f"row-{number:06d}", row
                number += 1
        if end is not None and number < end:
            raise pa.ArrowInvalid("the table has fewer rows than its footer states")
    except _CORRUPT as error:
        where = f"from row {number} on" if number else "at all"
        where = where if end is None else f"from row {number} to row {end - 1}"
        yield "", _corrupt(error, where)


def _corrupt(error: Exception, where: str) -> Rejection:
    """Return the rejection of damaged content, or raise the error again if reading failed."""
    if getattr(error, "errno", None) is not None:
        raise error  # The content of an unreadable file may be intact.
    cause = " ".join(str(error).split())[:200]
    return Rejection(
        "bad_table", f"the table cannot be read {where} ({cause}); copy or create the file again"
    )


def _start(stream: BinaryIO) -> bytes:
    stream.seek(0)
    start = stream.read(len(GIT_LFS))
    stream.seek(0)
    return start


def _arrow_batches(
    stream: BinaryIO, text_field: str | None, *, is_file: bool
) -> Iterator[pa.RecordBatch]:
    if is_file:
        reader = ipc.open_file(stream)
        batches = map(reader.get_batch, range(reader.num_record_batches))
    else:
        batches = reader = ipc.open_stream(stream)
    columns = _used(reader.schema, text_field)
    for batch in batches:
        batch.validate(full=True)  # pyarrow does not check the offsets of Arrow files.
        yield batch.select(columns)
    stream.seek(-len(_ARROW_END), os.SEEK_END)
    if not is_file and stream.read() != _ARROW_END:
        # The file was cut between two batches, or its writer was killed.
        raise pa.ArrowInvalid("the stream has no end marker")


def _parquet(stream: BinaryIO) -> parquet.ParquetFile:
    return parquet.ParquetFile(
        stream, pre_buffer=False, buffer_size=_READ_BYTES, page_checksum_verification=True
    )


def _parquet_rows(stream: BinaryIO, text_field: str | None, within: range | None) -> Iterator[_Row]:
    """Yield the rows of each row group. Damage to one group does not affect the others."""
    table = _parquet(stream)
    columns = _used(table.schema_arrow, text_field)
    first = 0
    for group in range(table.num_row_groups):
        metadata = table.metadata.row_group(group)
        if within is None or _offset(metadata) in within:
            batches = _group_batches(table, group, columns)
            yield from _numbered(batches, first, first + metadata.num_rows)
        first += metadata.num_rows


def _group_batches(
    table: parquet.ParquetFile, group: int, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    yield from table.iter_batches(
        _ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False
    )


def _offset(group: parquet.RowGroupMetaData) -> int:
    columns = [group.column(index) for index in range(group.num_columns)]
    first_pages = [(each.dictionary_page_offset, each.data_page_offset) for each in columns]
    return min((page for pages in first_pages for page in pages if page is not None), default=0)


def _used(schema: pa.Schema, text_field: str | None) -> list[str]:
    names, columns = set(schema.names), ", ".join(schema.names) or "none"
    used = [name for name in dict.fromkeys(keys_to_read(text_field)) if name in names]
    if text_field:
        if not {text_field, text_field.partition(".")[0]} & names:
            detail = f"--text_field {text_field}: not a column; the table has the columns {columns}"
            raise Rejection("no_text_field", detail)
    elif not names & set(CONTENT_KEYS):
        wrappers = [name for name in WRAPPERS if name in names]
        if not wrappers:
            raise Rejection(
                "not_a_task",
                f"the table has the columns {columns}; it needs one of {', '.join(CONTENT_KEYS)}, "
                "or --text_field; train and test belong together",
            )
        used += wrappers
    for name in used:
        if schema.names.count(name) > 1:
            raise Rejection("duplicate_key", f"the table has the column {name} twice; keep one")
    return used


def _row(row: pa.RecordBatch, check_size: bool) -> dict[str, object]:
    """Return the only row of a batch, without nulls."""
    try:
        (values,) = row.to_pylist()
    except UnicodeDecodeError as error:
        raise Rejection("bad_encoding", f"a text is not UTF-8: {error}") from None
    if check_size and len(repr(values)) > MAX_RECORD_BYTES:
        raise Rejection("record_too_large", f"the row has more than {MAX_RECORD_BYTES} bytes")
    present: dict[str, object] = _without_nulls(values)
    return present


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        return [_without_nulls(each) for each in value]
    return value
