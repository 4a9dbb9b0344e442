"""Target of `reliability.fuzz` that compares files read in blocks with files read whole."""

from __future__ import annotations

import io
import tempfile
from functools import cache
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from transforms.read_tasks import read_block, read_file
from transforms.split_file import Block, split_file


def _row_groups() -> bytes:
    """Make a Parquet file of four row groups."""
    values = [{"id": f"a/{number % 7}", "text": "words " * number} for number in range(8)]
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(values), stream, row_group_size=2)
    return stream.getvalue()


SEEDS = (
    b'{"name": "a", "text": "x"}\n{"id": "a/0", "text": "y"}\n{"name": "a", "text": "z"}\n',
    _row_groups(),
)
WORDS = (b'"name"', b'"a"', b'"a/0"', b'"line"', b"\n", b"\r\n", b"\xef\xbb\xbf")


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="blocks-")


def check(data: bytes) -> str:
    """Check that a file has the same items in blocks and whole; "accepted" means it was split."""
    path = Path(_folder().name, "a.parquet" if data.startswith(b"PAR1") else "a.jsonl")
    path.write_bytes(data)
    found = list(split_file(str(path), path.name, None, block_bytes=1 + len(data) % 50))
    read = [read_block(each) if isinstance(each, Block) else [each] for each in found]
    whole = list(read_file(str(path), path.name))
    assert [item for items in read for item in items] == whole
    return "accepted" if len(found) > 1 else "rejected"
