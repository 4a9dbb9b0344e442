"""Read tasks and documents from tables: Parquet files, and Arrow files as Hugging Face saves them.

A row is a record, like a line of a JSON Lines file (see `corpus.parse`), and its columns are the
keys. A row without an id is "row-000012" (from 0). A null counts as absent, at any depth, because
Arrow gives each object of a column the keys of all. Columns that are no such keys are not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import ipc, parquet

from corpus.json_records import GIT_LFS, MAX_RECORD_BYTES
from corpus.layouts import WRAPPERS, record_items, without_repeated_ids
from corpus.task import Item, Rejection
from corpus.validate import CONTENT_KEYS, keys_to_read

TABLE_SUFFIXES = (".parquet", ".arrow")

_PARQUET = b"PAR1"
_ARROW_FILE = b"ARROW1"
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
_ROWS_AT_ONCE = 64
_READ_BYTES = 1 << 20

# What pyarrow raises for damaged content.
_CORRUPT = (pa.ArrowException, OSError, UnicodeDecodeError)


def parse_table(stream: BinaryIO, source: str, text_field: str | None = None) -> Iterator[Item]:
    """Yield what `corpus.parse.parse_tasks` does, for a table.

    Memory is bounded by one batch of the file's rows.

    Args:
        stream: the file's bytes, seekable, read from the beginning; stays open.
        source: the file's path relative to the common root of all inputs; part of every item.
        text_field: the only content to read, as in `corpus.documents`; None for what is found.
    """
    yield from without_repeated_ids(_parse(stream, source, text_field), source)


def _parse(stream: BinaryIO, source: str, text_field: str | None) -> Iterator[Item]:
    number, names = 0, set[str]()
    try:
        for number, batch in _batches(stream, text_field):
            if isinstance(batch, Rejection):
                yield batch.of(source)
                continue
            # Not its `nbytes`, which may crash the process where the bytes are damaged.
            is_large = batch.get_total_buffer_size() > MAX_RECORD_BYTES
            for index in range(len(batch)):
                row_id = f"row-{number:06d}"
                number += 1
                try:
                    row = _row(batch.slice(index, 1), is_large)
                except Rejection as rejection:
                    yield rejection.of(source, row_id)
                else:
                    yield from record_items(row, source, row_id, names, text_field)
        if not number:
            raise Rejection("empty_file", "the table has no rows")
    except Rejection as rejection:
        yield rejection.of(source)
    except _CORRUPT as error:
        yield _corrupt(error, f"from row {number} on" if number else "at all").of(source)


def _corrupt(error: Exception, where: str) -> Rejection:
    """Return the rejection of damaged content; raise an error of reading on."""
    if getattr(error, "errno", None) is not None:
        raise error  # The file could not be read; its content may be sound.
    cause = " ".join(str(error).split())[:200]
    return Rejection(
        "bad_table", f"the table cannot be read {where} ({cause}); copy or make it again"
    )


def _batches(
    stream: BinaryIO, text_field: str | None
) -> Iterator[tuple[int, pa.RecordBatch | Rejection]]:
    """Yield batches with the number of their first row, and a rejection for a damaged part."""
    stream.seek(0)
    start = stream.read(len(GIT_LFS))
    stream.seek(0)
    if start == GIT_LFS:
        raise Rejection("bad_table", "a pointer of Git LFS instead of the table; run git lfs pull")
    if start.startswith(_PARQUET):
        yield from _parquet_batches(stream, text_field)
        return
    number = 0
    if start.startswith(_ARROW_FILE):
        reader = ipc.open_file(stream)
        batches = map(reader.get_batch, range(reader.num_record_batches))
    else:
        batches = reader = ipc.open_stream(stream)
    columns = _used(reader.schema, text_field)
    for batch in batches:
        batch.validate(full=True)  # Arrow files are read unchecked; offsets may lead outside
        yield number, batch.select(columns)
        number += len(batch)
    stream.seek(-len(_ARROW_END), os.SEEK_END)
    if not start.startswith(_ARROW_FILE) and stream.read() != _ARROW_END:
        # Cut between two batches, or its writer was killed.
        error = "the stream has no end mark"
        yield number, _corrupt(ValueError(error), f"after row {number}")


def _parquet_batches(
    stream: BinaryIO, text_field: str | None
) -> Iterator[tuple[int, pa.RecordBatch | Rejection]]:
    """Yield the batches of each row group; a damaged group does not cost the others."""
    table = parquet.ParquetFile(
        stream, pre_buffer=False, buffer_size=_READ_BYTES, page_checksum_verification=True
    )
    columns = _used(table.schema_arrow, text_field)
    first = 0
    for group in range(table.num_row_groups):
        number, first = first, first + table.metadata.row_group(group).num_rows
        try:
            for batch in table.iter_batches(
                _ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False
            ):
                yield number, batch
                number += len(batch)
        except _CORRUPT as error:
            yield first, _corrupt(error, f"from row {number} to row {first - 1}")


def _used(schema: pa.Schema, text_field: str | None) -> list[str]:
    names, columns = set(schema.names), ", ".join(schema.names) or "none"
    used = [name for name in dict.fromkeys(keys_to_read(text_field)) if name in names]
    if text_field:
        if not {text_field, text_field.partition(".")[0]} & names:
            detail = f"--text_field {text_field}: the table has the columns {columns}"
            raise Rejection("no_text_field", detail)
    elif not names & set(CONTENT_KEYS):
        wrappers = [name for name in WRAPPERS if name in names]
        if not wrappers:
            raise Rejection(
                "not_a_task",
                f"the table has the columns {columns}; one of {', '.join(CONTENT_KEYS)} is needed, "
                "or --text_field; train and test go together",
            )
        used += wrappers
    for name in used:
        if schema.names.count(name) > 1:
            raise Rejection("duplicate_key", f"the table has the column {name} twice")
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
