"""Read tasks and documents from tables: Parquet files, and the Arrow files of a saved dataset.

A row is a record, as a line of a JSON Lines file is (see `corpus.parse`): the columns `train` and
`test`, `messages`, `text` or `examples` hold its content, and `id`, `task_id` or `name` its id; a
row without one is "row-000012" (from 0). A null is as if its column were not there, and columns
of other names are not read. `Dataset.save_to_disk` of Hugging Face writes such Arrow files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
from pyarrow import ipc, parquet

from corpus.json_stream import MAX_RECORD_BYTES, Decoded, Rejection
from corpus.layouts import Item, record_items, rejected, without_repeated_ids
from corpus.validate import CONTENT_KEYS, ID_KEYS

TABLE_SUFFIXES = (".parquet", ".arrow")

_PARQUET = b"PAR1"
_ARROW_FILE = b"ARROW1"
_ROWS_AT_ONCE = 64
_READ_BYTES = 1 << 20

_CORRUPT = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for bytes that are not what they should be."""


def parse_table(stream: BinaryIO, source: str) -> Iterator[Item]:
    """Yield every task and document of a table, and a `RejectedTask` for each that cannot be used.

    A bad row never stops the file; where the file itself cannot be read on, a last `RejectedTask`
    says so. Whatever the bytes, nothing is raised but what reading the stream raises. Memory is
    bounded by one batch of the file's rows.

    Args:
        stream: the file's bytes, seekable, read from its beginning; stays open.
        source: the file's path relative to the common root of all inputs; part of every value.
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
                    yield from record_items(Decoded(row, None), source, row_id)
                except Rejection as rejection:
                    yield rejected(source, row_id, rejection)
        if not number:
            raise Rejection("empty_file", "the table has no rows")
    except Rejection as rejection:
        yield rejected(source, "", rejection)
    except _CORRUPT as error:
        if getattr(error, "errno", None) is not None:
            raise  # Not the content is damaged: the file could not be read.
        where = f"from row {number} on" if number else "at all"
        detail = f"the table cannot be read {where} ({_one_line(error)}); copy or make it again"
        yield rejected(source, "", Rejection("bad_table", detail))


def _batches(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    """The rows of a table, in order, with the columns that are used."""
    stream.seek(0)
    start = stream.read(len(_ARROW_FILE))
    stream.seek(0)
    if start.startswith(_PARQUET):
        table = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES)
        yield from table.iter_batches(
            _ROWS_AT_ONCE, columns=_used(table.schema_arrow), use_threads=False
        )
    elif start == _ARROW_FILE:
        reader = ipc.open_file(stream)
        columns = _used(reader.schema)
        for index in range(reader.num_record_batches):
            yield _sound(reader.get_batch(index)).select(columns)
    else:
        reader = ipc.open_stream(stream)
        columns = _used(reader.schema)
        for batch in reader:
            yield _sound(batch).select(columns)


def _used(schema: pa.Schema) -> list[str]:
    used = [name for name in (*ID_KEYS, *CONTENT_KEYS) if name in schema.names]
    if not set(used) & set(CONTENT_KEYS):
        raise Rejection(
            "not_a_task",
            f"the table has the columns {', '.join(schema.names) or 'none'}; one of "
            f"{', '.join(CONTENT_KEYS)} is needed, and train and test go together",
        )
    if repeated := [name for name in used if schema.names.count(name) > 1]:
        raise Rejection("duplicate_key", f"the table has the column {repeated[0]} twice")
    return used


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, none of whose offsets leads outside of it: Arrow files are read unchecked."""
    batch.validate(full=True)
    return batch


def _row(row: pa.RecordBatch, check_size: bool) -> dict[str, object]:
    """The only row of a batch, without nulls."""
    try:
        (values,) = row.to_pylist()
    except UnicodeDecodeError as error:
        raise Rejection("bad_encoding", f"a text is not UTF-8: {error}") from None
    if check_size and len(repr(values)) > MAX_RECORD_BYTES:
        raise Rejection("record_too_large", f"the row has more than {MAX_RECORD_BYTES} bytes")
    return {name: value for name, value in values.items() if value is not None}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
