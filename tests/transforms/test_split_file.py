"""A file read in blocks gives the same items as the file read whole."""

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.cloud.storage import Bucket
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from activation_dataset.metadata import InputFile
from corpus.task import Document, Item, Notice, RejectedTask
from tests.end_to_end.emulator import BUCKET, address, bucket
from transforms.read_tasks import read_block, read_file
from transforms.split_file import Block, TasksChangedError, split_file

__all__ = ["address", "bucket"]

PAIR = {"input": [[1]], "output": [[2]]}
TASK = {"train": [PAIR], "test": [PAIR, PAIR]}
PAIRS = {"examples": [[[[1]], [[2]]]] * 8}


def blocks_of(path: object, size: int, text_field: str | None = None) -> list[Block | InputFile]:
    return list(split_file(str(path), os.path.basename(str(path)), text_field, size))


def read_in_blocks(
    path: object, size: int, text_field: str | None = None
) -> list[Item | InputFile]:
    """Read the blocks in reverse order, since no block may need another."""
    found = blocks_of(path, size, text_field)
    blocks = [each for each in found if isinstance(each, Block)]
    read = [list(read_block(each, text_field)) for each in reversed(blocks)]
    items = [item for each in reversed(read) for item in each]
    return [*items, *(each for each in found if isinstance(each, InputFile))]


def read_whole(path: object, text_field: str | None = None) -> list[Item | InputFile]:
    return list(read_file(str(path), os.path.basename(str(path)), text_field))


def check(path: Path, content: bytes, size: int, text_field: str | None = None) -> int:
    """Compare a file in blocks with the whole file, and return the number of blocks."""
    path.write_bytes(content)
    assert read_in_blocks(path, size, text_field) == read_whole(path, text_field)
    return sum(isinstance(each, Block) for each in blocks_of(path, size, text_field))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("split")


names = st.sampled_from(["a", "b", "a/0", "a-000000", "line-000002", "line", "\n", "x" * 40, 7])
ids = st.dictionaries(st.sampled_from(["id", "task_id", "name"]), names | st.none(), max_size=2)
contents = st.sampled_from(
    [TASK, PAIRS, PAIR, {"text": "words"}, {"text": 1}, {"data": TASK}, {"test": []}, {}]
)
records = st.builds(lambda own, content: json.dumps(own | content).encode(), ids, contents)
odd_lines = st.sampled_from(
    [
        b"",
        b"  \t",
        b"{",
        b"null",
        b"[1, 2]",
        b'{"id": "a", "text": "\xff"}',
        b'{"id": "\xff", "text": "x"}',
        b'{"\\u0069d": "a", "text": "x"}',
        b'{"id": "a", "id": "b", "text": "x"}',
        b'\xef\xbb\xbf{"text": "x"}',
        b'{"text": "' + b"long " * 100 + b'"}',
        b'{"text": "x"} trailing',
        '{"id": "é", "text": "漢字"}'.encode(),
    ]
)
files = st.builds(
    lambda mark, lines, between, end: mark + between.join([b'{"text": "first"}', *lines]) + end,
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(records | odd_lines, min_size=1, max_size=12),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    st.sampled_from([b"", b"\n", b"\n\n "]),
)


@settings(deadline=None, max_examples=300)
@given(files, st.integers(1, 200))
@example(b'{"name": "a", "text": "x"}\n' * 4, 1)
@example(b'{"id": "a", "text": "x"}\n{"text": 1}\n{"id": "line-000002", "text": "x"}\n', 1)
@example(b'{"id": "line", "examples": [[[[1]], [[1]]]]}\n{"text": 1}\n', 1)
@example(b'{"id": "a/0", "text": "x"}\n{"id": "a", "train": [], "test": []}\n', 1)
def test_lines_in_blocks_of_any_size_give_the_same(folder: Path, content: bytes, size: int):
    path = folder / "a.jsonl"
    check(path, content, size, "text")
    blocks = check(path, content, size)
    assert blocks > 1 or len(content) <= 2 * size + 800


def test_a_line_over_the_limit_may_span_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    limit = 1000
    for module in ("json_records", "layouts", "parse"):
        monkeypatch.setattr(f"corpus.{module}.MAX_RECORD_BYTES", limit)
    for read_bytes in (1 << 20, 300):
        monkeypatch.setattr("corpus.parse._READ_BYTES", read_bytes)
        monkeypatch.setattr("transforms.task_file._READ_BYTES", read_bytes)
        for text in (b"x" * (limit + 10), b"x" * 5 * limit, b"\xff" * 5 * limit):
            line = b'{"text": "' + text + b'"}'
            for large in (line, line + b" " * limit, b" " * limit + line, b" " * 2 * limit):
                content = b'{"id": 1, "text": "a"}\n' + large + b'\n{"id": 2, "text": "b"}'
                assert check(tmp_path / "a.jsonl", content, 10) == 3
                items = read_whole(tmp_path / "a.jsonl")
                rejected = [each for each in items if isinstance(each, RejectedTask)]
                assert [each.reason for each in rejected] == ["record_too_large"]
                assert rejected[0].task_id == "line-000002"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps({str(i): TASK for i in range(20)}).encode()),
        ("a.json", json.dumps([TASK] * 20).encode()),
        ("a.json", json.dumps([PAIR] * 20, indent=1).encode()),
        ("a.jsonl", b"{" * 200),
        ("a.jsonl", b"  \n" * 200),
        ("a.jsonl", gzip.compress(b'{"text": "x"}\n' * 20, mtime=0)),
        ("a.jsonl.gz", gzip.compress(os.urandom(500))),
        ("a.parquet", b"PAR1" * 20),
        ("a.parquet", b"ARROW1" * 20),
    ],
)
def test_other_files_are_one_block(tmp_path: Path, name: str, content: bytes):
    assert check(tmp_path / name, content, 10) == 1


def test_a_small_file_is_not_read_to_be_split(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n' * 10)
    assert blocks_of(path, 140) == [Block(os.fsencode(path), path.name)]
    assert len(blocks_of(path, 126)) == 2 + 1


def test_only_what_recurs_travels_with_a_block(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"id": {i % 90}, "text": "x"}}\n' for i in range(100)))
    parts = [each.part for each in blocks_of(path, 1000) if isinstance(each, Block)]
    assert all(parts)
    assert [len(each.ids) for each in parts if each] == [0, 0, 10]
    read = read_in_blocks(path, 1000)
    assert sum(isinstance(each, RejectedTask) for each in read) == 10


def test_a_name_that_repeats_in_a_later_block_gives_one_notice(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"name": "cat", "text": "x"}\n' * 5)
    read = read_in_blocks(path, 1)
    found = [item.document_id for item in read if isinstance(item, Document)]
    assert found == ["cat", *(f"line-{number:06d}" for number in range(2, 6))]
    (notice,) = [item for item in read if isinstance(item, Notice)]
    assert notice.task_id == "line-000002"


rows = st.fixed_dictionaries(
    {
        "id": st.none() | st.sampled_from(["a", "a/0", "row-000001", "row", "b" * 50, "\n"]),
        "name": st.none() | st.sampled_from(["a", "c", "\n"]),
        "text": st.none() | st.sampled_from(["words", " ", "x" * 300]),
        "train": st.none() | st.just([PAIR]),
        "test": st.none() | st.just([PAIR, PAIR]),
    }
)


def parquet_file(values: list[dict[str, Any]], group: int) -> bytes:
    grid = pa.list_(pa.list_(pa.int64()))
    pairs = pa.list_(pa.struct({"input": grid, "output": grid}))
    text = dict.fromkeys(("id", "name", "text"), pa.string())
    schema = pa.schema(list((text | {"train": pairs, "test": pairs}).items()))
    stream = io.BytesIO()
    table = pa.Table.from_pylist(values, schema)
    parquet.write_table(table, stream, row_group_size=group, write_page_checksum=True)
    return stream.getvalue()


@settings(deadline=None, max_examples=100)
@given(st.lists(rows, min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 4000))
def test_row_groups_in_blocks_of_any_size_give_the_same(
    folder: Path, values: list[dict[str, Any]], group: int, size: int
):
    content, groups = parquet_file(values, group), -(-len(values) // group)
    for text_field in (None, "name"):
        blocks = check(folder / "a.parquet", content, size, text_field)
        assert blocks == groups if size == 1 else blocks <= groups


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=3))
def test_damage_to_a_table_costs_the_same_in_blocks(folder: Path, damage: list[tuple[float, int]]):
    values = [{"id": str(i), "text": "some words " * (i % 7)} for i in range(40)]
    content = bytearray(parquet_file(values, 8))
    for place, bits in damage:
        content[int(place * (len(content) - 1))] ^= bits
    check(folder / "a.parquet", bytes(content), 1)


def lines_file() -> bytes:
    return b"".join(b'{"id": %d, "text": "some words"}\n' % i for i in range(100))


def groups_file() -> bytes:
    return parquet_file([{"id": str(i), "text": f"some words {i}"} for i in range(100)], 20)


def replace_text(content: bytes) -> bytes:
    """Change only a later part, and keep it valid."""
    before, _, after = content.rpartition(b"words")
    return before + b"WORDS" + after


KINDS = pytest.mark.parametrize(
    ("name", "make"), [("a.jsonl", lines_file), ("a.parquet", groups_file)]
)


@KINDS
def test_objects_of_a_bucket_are_split(bucket: Bucket, name: str, make: Callable[[], bytes]):
    bucket.blob(f"texts/{name}").upload_from_string(make())
    path = f"gs://{BUCKET}/texts/{name}"
    assert len(blocks_of(path, 1000)) > 3
    assert read_in_blocks(path, 1000) == read_whole(path)


@KINDS
@pytest.mark.parametrize("change", [replace_text, lambda old: old + b"\n", lambda old: old[:-1]])
def test_a_file_that_changes_meanwhile_is_an_error(
    tmp_path: Path, name: str, make: Callable[[], bytes], change: Callable[[bytes], bytes]
):
    path = tmp_path / name
    path.write_bytes(make())
    blocks = [each for each in blocks_of(path, 1000) if isinstance(each, Block)]
    path.write_bytes(change(make()))
    with pytest.raises(TasksChangedError, match=rf"{name}: changed since"):
        [list(read_block(each)) for each in blocks]
