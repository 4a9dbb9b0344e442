import errno
import io
import json
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

import corpus.tables
from corpus.parse import parse_tasks
from corpus.tables import parse_table
from corpus.task import REASONS, Document, Item, Pair, RejectedTask, Task

Encode = Callable[[pa.Table], bytes]

PAIR: dict[str, Any] = {"input": [[0, 1], [2, 3]], "output": [[4]]}
TASK: dict[str, Any] = {"id": "a", "train": [PAIR], "test": [{**PAIR, "output": None}]}
ROWS: list[dict[str, Any]] = [
    TASK,
    {"id": "t", "text": "Some text.\n"},
    {"id": "m", "messages": [{"role": "user", "content": "Hello"}]},
    {"id": "p", "examples": [[[[1.0, 0.0]], [[2.0]]]] * 3},
    {"text": "no id"},
]

GRID = pa.list_(pa.list_(pa.int64()))
PAIRS = pa.list_(pa.struct({"input": GRID, "output": GRID}))
MESSAGE = pa.struct({"role": pa.string(), "content": pa.string(), "name": pa.string()})
COLUMNS: dict[str, pa.DataType] = {
    "embedding": pa.list_(pa.float32()),
    "id": pa.string(),
    "train": PAIRS,
    "test": PAIRS,
    "text": pa.large_string(),
    "messages": pa.list_(MESSAGE),
    "examples": pa.list_(pa.list_(pa.list_(pa.list_(pa.float64())))),
}
SOURCE = "sub/name.parquet"


def table(*rows: dict[str, Any]) -> pa.Table:
    """Return a table with all columns and nulls for missing values, the format of Hugging Face."""
    return pa.Table.from_pylist(list(rows), schema=pa.schema(list(COLUMNS.items())))


def parquet_file(rows: pa.Table) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(rows, stream, row_group_size=50)
    return stream.getvalue()


def arrow_stream(rows: pa.Table, new: Any = ipc.new_stream) -> bytes:
    """Return a table in the stream format in which Hugging Face saves a dataset."""
    stream = io.BytesIO()
    with new(stream, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=2)
    return stream.getvalue()


def arrow_file(rows: pa.Table) -> bytes:
    return arrow_stream(rows, ipc.new_file)


FORMATS = pytest.mark.parametrize("encode", [parquet_file, arrow_stream, arrow_file])


def parse(content: bytes, source: str = SOURCE) -> list[Item]:
    return list(parse_table(io.BytesIO(content), source))


def only_rejection(content: bytes) -> RejectedTask:
    (item,) = parse(content)
    assert isinstance(item, RejectedTask), item
    assert item.detail.startswith(SOURCE)
    assert item.reason in REASONS
    return item


@FORMATS
def test_a_row_is_read_as_a_line_would_be(encode: Encode):
    pair, floats = Pair(((0, 1), (2, 3)), ((4,),)), Pair(((1, 0),), ((2,),))
    stream = io.BytesIO(encode(table(*ROWS)))
    *items, last = parse_table(stream, SOURCE)
    assert items == [
        Task("a", SOURCE, (pair,), (Pair(pair.input, None),)),
        Document("t", SOURCE, "Some text.\n"),
        Document("m", SOURCE, None, ({"role": "user", "content": "Hello"},)),
        Task("p-000000", SOURCE, (floats, floats), (floats,)),
    ]
    assert last == Document("row-000004", SOURCE, "no id")
    assert not stream.closed
    lines = "".join(json.dumps(row) + "\n" for row in ROWS[:-1])
    assert items == list(parse_tasks(io.BytesIO(lines.encode()), SOURCE))


@FORMATS
def test_only_the_columns_that_are_used_are_needed(encode: Encode):
    whole_number = pa.table({"text": ["a"], "id": [7], "picture": [b"\0"]})
    assert parse(encode(whole_number), "x") == [Document("7", "x", "a")]
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int32()), pa.array(["same"]))
    assert parse(encode(pa.table({"text": texts})), "x") == [
        Document("row-000000", "x", "same"),
        Document("row-000001", "x", "same"),
    ]


@FORMATS
@pytest.mark.parametrize(
    ("row", "task_id", "reason"),
    [
        ({"id": "a", "messages": [{"role": "", "content": "x"}]}, "a", "bad_message"),
        ({**TASK, "train": [{"input": [[1], [1, 2]], "output": [[1]]}]}, "a", "ragged_grid"),
        ({"id": "a"}, "a", "not_a_task"),
        ({"id": "\n", "text": "x"}, "row-000001", "bad_id"),
        ({"id": "t", "text": "again"}, "t", "duplicate_id"),
        ({"id": "a", "text": "x" * 2000}, "row-000001", "record_too_large"),
    ],
)
def test_a_bad_row_costs_that_row(
    encode: Encode, row: dict[str, Any], task_id: str, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpus.tables, "MAX_RECORD_BYTES", 1000)
    rows = [{"id": "t", "text": "before"}, row, {"id": "u", "text": "after"}]
    before, bad, after = parse(encode(table(*rows)))
    assert isinstance(before, Document)
    assert isinstance(after, Document)
    assert isinstance(bad, RejectedTask)
    assert (bad.task_id, bad.reason) == (task_id, reason)


def test_a_file_of_zero_bytes_is_empty():
    assert only_rejection(b"").reason == "empty_file"


@FORMATS
def test_an_empty_table_is_named(encode: Encode):
    assert only_rejection(encode(table())).reason == "empty_file"
    without = only_rejection(encode(pa.table({"id": [1], "image": ["x"]})))
    assert without.reason == "not_a_task"
    assert "the table has the columns id, image; it needs one of train" in without.detail
    twice = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"])
    assert only_rejection(encode(twice)).reason == "duplicate_key"


@pytest.mark.parametrize("content", [b"PAR1", b"ARROW1", b"{}\n", bytes(100), b"PAR1" * 9])
def test_a_file_that_is_not_a_table_is_rejected(content: bytes):
    assert only_rejection(content).reason == "bad_table"


@FORMATS
def test_damage_never_raises_and_never_passes_in_silence(encode: Encode):
    content = encode(table(*[{"id": str(i), "text": "some text"} for i in range(20)]))
    generator = random.Random(0)
    for length in range(0, len(content) - 1, 97):
        *read, last = parse(content[:length])
        assert read == [Document(str(i), SOURCE, "some text") for i in range(len(read))]
        assert isinstance(last, RejectedTask)
        assert not (read and isinstance(last, RejectedTask)) or f"row {len(read)} on" in last.detail
    for _ in range(200):
        broken = bytearray(content)
        for _ in range(3):
            broken[generator.randrange(len(broken))] ^= 1 << generator.randrange(8)
        for item in parse(bytes(broken)):
            assert not isinstance(item, RejectedTask) or item.reason in REASONS


def test_a_text_that_is_not_utf8_costs_its_row():
    sound = parquet_file(pa.table({"text": ["before", "marker-text", "after"]}))
    _, bad, after = parse(sound.replace(b"marker-text", b"marker\xfftext"))
    assert isinstance(bad, RejectedTask)
    assert bad.reason == "bad_encoding"
    assert after == Document("row-000002", SOURCE, "after")


def test_a_stream_that_cannot_be_read_is_an_error():
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "the disk")

    with pytest.raises(OSError, match="the disk"):
        list(parse_table(Broken(parquet_file(table(*ROWS))), "x"))


def test_a_stream_cut_between_batches_is_not_whole():
    """The format allows such a stream, but rows are missing if its writer was killed."""
    whole = arrow_stream(table(*[{"id": str(i), "text": "a"} for i in range(4)]))
    *rows, last = parse(whole[:-8])
    assert len(rows) == 4
    assert isinstance(last, RejectedTask)
    assert "no end mark" in last.detail


def test_a_damaged_row_group_costs_its_rows():
    stream = io.BytesIO()
    texts = [f"marker-{i:02d}-{i * 7919 % 997}" for i in range(40)]
    rows = pa.table({"text": texts})
    parquet.write_table(
        rows, stream, row_group_size=10, compression="none", write_page_checksum=True
    )
    damaged = bytearray(stream.getvalue())
    at = damaged.index(b"marker-15")
    damaged[at] ^= 1
    items = parse(bytes(damaged))
    read = [item for item in items if isinstance(item, Document)]
    kept = [*range(10), *range(20, 40)]
    assert [(item.document_id, item.text) for item in read] == [
        (f"row-{i:06d}", texts[i]) for i in kept
    ]
    (bad,) = [item for item in items if isinstance(item, RejectedTask)]
    assert bad.reason == "bad_table"
    assert "from row 10 to row 19" in bad.detail


@FORMATS
def test_tasks_as_json_text(encode: Encode):
    """The text may be in the columns `train` and `test`, or in one column `data` or `task`."""
    pairs = pa.table({"id": ["a"], "train": [json.dumps([PAIR])], "test": [json.dumps([PAIR])]})
    task = json.dumps({"train": [PAIR], "test": [PAIR]})
    for rows in (
        pairs,
        pa.table({"id": ["a"], "task": [task]}),
        pa.table({"id": ["a"], "data": [task]}),
    ):
        (item,) = parse(encode(rows))
        pair = Pair(((0, 1), (2, 3)), ((4,),))
        assert item == Task("a", SOURCE, (pair,), (pair,))


def test_a_git_lfs_pointer_is_named():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    assert "git lfs pull" in only_rejection(pointer).detail


@FORMATS
def test_names_that_repeat_do_not_cost_rows(encode: Encode):
    items = parse(encode(pa.table({"name": ["cat", "cat"], "text": ["a", "b"]})))
    read = [(item.document_id, item.text) for item in items if isinstance(item, Document)]
    assert read == [("cat", "a"), ("row-000001", "b")]
