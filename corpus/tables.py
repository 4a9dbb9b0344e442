"""Read tasks and documents from tables: Parquet files, and Arrow files as Hugging Face saves them.

A row is a record, like a line of a JSON Lines file (see `corpus.parse`), and its columns are the
keys. A row without an id is "row-000012" (from 0). A null counts as absent, at any depth, because
Arrow gives each object of a column the keys of all. Columns that are no such keys are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import ipc, parquet

from corpus.json_records import MAX_RECORD_BYTES
from corpus.layouts import record_items, without_repeated_ids
from corpus.task import Item, Rejection
from corpus.validate import CONTENT_KEYS, keys_to_read

TABLE_SUFFIXES = (".parquet", ".arrow")

_PARQUET = b"PAR1"
_ARROW_FILE = b"ARROW1"
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
    number = 0
    try:
        for batch in _batches(stream, text_field):
            # Not its `nbytes`, which may crash the process where the bytes are damaged.
            is_large = batch.get_total_buffer_size() > MAX_RECORD_BYTES
            for index in range(len(batch)):
                row_id = f"row-{number:06d}"
                number += 1
                try:
                    row = _row(batch.slice(index, 1), is_large)
                    yield from record_items(row, source, row_id, text_field)
                except Rejection as rejection:
                    yield rejection.of(source, row_id)
        if not number:
            raise Rejection("empty_file", "the table has no rows")
    except Rejection as rejection:
        yield rejection.of(source)
    except _CORRUPT as error:
        if getattr(error, "errno", None) is not None:
            raise  # The file could not be read; its content may be sound.
        where = f"from row {number} on" if number else "at all"
        cause = " ".join(str(error).split())[:200]
        detail = f"the table cannot be read {where} ({cause}); copy or make it again"
        yield Rejection("bad_table", detail).of(source)


def _batches(stream: BinaryIO, text_field: str | None) -> Iterator[pa.RecordBatch]:
    stream.seek(0)
    start = stream.read(len(_ARROW_FILE))
    stream.seek(0)
    if start.startswith(_PARQUET):
        table = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES)
        columns = _used(table.schema_arrow, text_field)
        yield from table.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False)
        return
    if start == _ARROW_FILE:
        reader = ipc.open_file(stream)
        batches = map(reader.get_batch, range(reader.num_record_batches))
    else:
        batches = reader = ipc.open_stream(stream)
    columns = _used(reader.schema, text_field)
    for batch in batches:
        batch.validate(full=True)  # Arrow files are read unchecked; offsets may lead outside
        yield batch.select(columns)


def _used(schema: pa.Schema, text_field: str | None) -> list[str]:
    used = [name for name in dict.fromkeys(keys_to_read(text_field)) if name in schema.names]
    if text_field and not {text_field, text_field.partition(".")[0]} & set(used):
        columns = ", ".join(schema.names)
        detail = f"--text_field {text_field}: the table has the columns {columns or 'none'}"
        raise Rejection("no_text_field", detail)
    if not text_field and not set(used) & set(CONTENT_KEYS):
        raise Rejection(
            "not_a_task",
            f"the table has the columns {', '.join(schema.names) or 'none'}; one of "
            f"{', '.join(CONTENT_KEYS)} is needed, or --text_field; train and test go together",
        )
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
