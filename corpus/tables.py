"""Read tasks and documents from tables: Parquet files, and Arrow files as Hugging Face saves them.

A row is a record, like a line of a JSON Lines file (see `corpus.parse`): the columns `train` and
`test`, `messages`, `text` or `examples` hold its content, and `id`, `task_id` or `name` its id; a
row without an id is "row-000012" (from 0). A null counts as absent. Other columns are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
from pyarrow import ipc, parquet

from corpus.json_records import MAX_RECORD_BYTES
from corpus.layouts import record_items, without_repeated_ids
from corpus.task import Item, Rejection
from corpus.validate import CONTENT_KEYS, ID_KEYS

TABLE_SUFFIXES = (".parquet", ".arrow")

_PARQUET = b"PAR1"
_ARROW_FILE = b"ARROW1"
_ROWS_AT_ONCE = 64
_READ_BYTES = 1 << 20

# What pyarrow raises for damaged content.
_CORRUPT = (pa.ArrowException, OSError, UnicodeDecodeError)


def parse_table(stream: BinaryIO, source: str) -> Iterator[Item]:
    """Yield what `corpus.parse.parse_tasks` does, for a table.

    Memory is bounded by one batch of the file's rows.

    Args:
        stream: the file's bytes, seekable, read from the beginning; stays open.
        source: the file's path relative to the common root of all inputs; part of every item.
    """
    yield from without_repeated_ids(_parse(stream, source), source)


def _parse(stream: BinaryIO, source: str) -> Iterator[Item]:
    number = 0
    try:
        for batch in _batches(stream):
            # Not its `nbytes`, which may crash the process where the bytes are damaged.
            is_large = batch.get_total_buffer_size() > MAX_RECORD_BYTES
            for index in range(len(batch)):
                row_id = f"row-{number:06d}"
                number += 1
                try:
                    row = _row(batch.slice(index, 1), is_large)
                    yield from record_items(row, source, row_id)
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


def _batches(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    stream.seek(0)
    start = stream.read(len(_ARROW_FILE))
    stream.seek(0)
    if start.startswith(_PARQUET):
        table = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES)
        columns = _used(table.schema_arrow)
        yield from table.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False)
        return
    if start == _ARROW_FILE:
        reader = ipc.open_file(stream)
        batches = map(reader.get_batch, range(reader.num_record_batches))
    else:
        batches = reader = ipc.open_stream(stream)
    columns = _used(reader.schema)
    for batch in batches:
        batch.validate(full=True)  # Arrow files are read unchecked; offsets may lead outside
        yield batch.select(columns)


def _used(schema: pa.Schema) -> list[str]:
    used = [name for name in (*ID_KEYS, *CONTENT_KEYS) if name in schema.names]
    if set(used) <= set(ID_KEYS):
        raise Rejection(
            "not_a_task",
            f"the table has the columns {', '.join(schema.names) or 'none'}; one of "
            f"{', '.join(CONTENT_KEYS)} is needed, and train and test go together",
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
    return {name: value for name, value in values.items() if value is not None}
