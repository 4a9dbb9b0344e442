import gzip
import io
import json
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus.parse import parse_tasks
from corpus.task import (
    NOTICE_REASONS,
    REASONS,
    Document,
    Item,
    Notice,
    Pair,
    RejectedTask,
    Task,
)

PAIR: dict[str, Any] = {"input": [[0, 1], [2, 3]], "output": [[4]]}
TASK: dict[str, Any] = {"train": [PAIR], "test": [PAIR]}
GOOD = json.dumps(TASK)


def parse(content: object, source: str = "folder/name.json") -> list[Item]:
    """Parse bytes unchanged, text as UTF-8, and anything else as JSON."""
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    data = content.encode() if isinstance(content, str) else content
    return list(parse_tasks(io.BytesIO(data), source))


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def ids(items: list[Item]) -> list[str]:
    return [item.document_id if isinstance(item, Document) else item.task_id for item in items]


def reasons(items: list[Item]) -> list[str]:
    """Return the reason of each rejected item, "" for other items."""
    return [item.reason if isinstance(item, RejectedTask) else "" for item in items]


def content_of(task: Task) -> Any:
    """Return a task in the form of its file."""
    content = {"train": task.train, "test": task.test}
    return json.loads(json.dumps(content, default=asdict))


def with_input(grid: object) -> dict[str, Any]:
    return {"train": [PAIR, PAIR, {"input": grid, "output": [[1]]}], "test": [PAIR]}


def test_a_task_is_named_by_its_file_and_keeps_every_cell():
    (task,) = parse({"name": "another", "extra": {"train": 1}, **TASK}, "sub/007bbfb7.json.gz")
    pair = Pair(((0, 1), (2, 3)), ((4,),))
    assert task == Task("007bbfb7", "sub/007bbfb7.json.gz", (pair,), (pair,))
    assert task.sample_id(0) == "sub/007bbfb7.json.gz#007bbfb7/0"


def test_the_combined_file_with_and_without_answers():
    hidden = {"train": [PAIR], "test": [{"input": [[5]]}, {"input": [[6]], "output": None}]}
    with_answers, without = parse({"one": TASK, "two": hidden})
    assert isinstance(with_answers, Task)
    assert isinstance(without, Task)
    assert with_answers.test[0].output == ((4,),)
    assert (without.task_id, without.test) == ("two", (Pair(((5,),), None), Pair(((6,),), None)))


def test_json_lines_take_their_ids_from_id_task_id_name_or_the_line():
    content = lines({"id": "a", **TASK}) + "\n" + lines({"task_id": 7, **TASK})
    items = parse(content + lines({"name": "c", **TASK}, TASK))
    assert ids(items) == ["a", "7", "c", "line-000005"]
    assert ids(parse(lines({"id": "a", **TASK}), "x.jsonl.gz")) == ["a"]


def test_documents_are_lines_files_or_members():
    source = "folder/name.json"
    user = {"role": "user", "content": "Hi", "extra": 1}
    assistant = {"role": "assistant", "content": "Ho"}
    assert parse(
        lines({"id": "t", "text": " as it is\n"}, {"id": "m", "messages": [user, assistant]})
    ) == [
        Document("t", source, " as it is\n"),
        Document("m", source, None, (user, assistant)),
    ]
    text = {"text": "words", "examples": [1]}
    assert parse(text) == [Document("name", source, "words")]
    assert ids(parse({"id": "own", **text})) == ["own"]
    assert ids(parse([text, {"id": 3, **text}])) == ["item-000000", "3"]
    assert ids(parse({"a": TASK, "b": text})) == ["a", "b"]


def test_a_record_whose_text_has_another_key_is_rejected_with_the_flag():
    (item,) = parse([{"id": "a", "length": 3, "body": "words"}])
    assert isinstance(item, RejectedTask)
    assert "--text_field body" in item.detail


def test_extra_keys_before_the_telling_one_do_not_mislead():
    assert ids(parse({"metadata": {"author": "x"}, "tags": [[[1]]], "n": 1, **TASK})) == ["name"]
    items = parse({"version": 3, "notes": {"a": 1}, "one": TASK})
    assert ids(items) == ["version", "notes", "one"]
    assert reasons(items) == ["not_a_task", "not_a_task", ""]
    many = dict.fromkeys(map(str, range(2000)), 1)
    assert isinstance(parse({**many, "task": TASK})[-1], Task)


def barc(pairs: list[Any]) -> str:
    """Return a record of BARC: pairs of grids of floats, and the program that made them."""
    floats = [[[[float(c) for c in row] for row in grid] for grid in p.values()] for p in pairs]
    return lines({"source": "def main(grid):\n    return grid", "examples": floats, "id": "abc"})


@pytest.mark.parametrize(("count", "sizes"), [(2, [2]), (7, [7]), (8, [6, 2]), (13, [6, 7])])
@pytest.mark.parametrize("encode", [json.dumps, barc])
def test_pairs_of_rearc_and_barc_become_tasks_of_six_in_order(
    encode: Any, count: int, sizes: list[int]
):
    pairs = [{"input": [[index % 10]], "output": [[index // 10]]} for index in range(count)]
    items = parse(encode(pairs), "tasks/abc.json" if encode is json.dumps else "x.jsonl")
    assert ids(items) == [f"abc-{index:06d}" for index in range(len(sizes))]
    tasks = [item for item in items if isinstance(item, Task)]
    assert [(len(task.train) + 1, len(task.test)) for task in tasks] == [(n, 1) for n in sizes]
    found = [pair for task in tasks for pair in (*task.train, *task.test)]
    assert found == [Pair(((index % 10,),), ((index // 10,),)) for index in range(count)]
    assert all(type(cell) is int for pair in found for row in pair.input for cell in row)


def test_a_bad_rearc_pair_costs_that_pair():
    pairs: list[dict[str, Any]] = [{"input": [[1]], "output": [[index]]} for index in range(9)]
    pairs[3] = {"input": [[1]]}
    items = parse(pairs, "abc.json")
    assert ids(items) == ["item-000003", "abc-000000", "abc-000001"]
    assert reasons(items) == ["bad_pair", "", ""]
    assert reasons(parse([PAIR])) == ["no_train_pairs"]


def test_a_bad_barc_record_is_rejected_whole():
    pairs = [[[[1]], [[1]]], [[[1]], [[2.5]]]]
    (first, second) = parse(lines({"examples": pairs}, TASK), "a.jsonl")
    assert isinstance(first, RejectedTask)
    assert first.reason == "bad_cell"
    assert "examples[1].output row 0" in first.detail
    assert isinstance(second, Task)


def test_byte_order_mark_and_line_ends_of_windows():
    data = b"\xef\xbb\xbf" + lines({"id": "a", **TASK}, {"id": "b", **TASK}).encode()
    assert ids(parse(data.replace(b"\n", b"\r\n"))) == ["a", "b"]
    assert ids(parse(b"\xef\xbb\xbf \n" + GOOD.encode())) == ["name"]


@pytest.mark.parametrize(
    ("content", "reason", "said"),
    [
        (b" \n\n", "empty_file", "white space"),
        (gzip.compress(b"{}", mtime=0), "compressed_file", "gzip"),
        (GOOD.encode("utf-16"), "bad_encoding", "UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_json", "git lfs pull"),
        (b"train,test\n1,2\n", "not_json", "'train,test"),
        (GOOD[:-9], "truncated_json", "cut off"),
        (f'\n{{"train": {"[" * 50_000}{"]" * 50_000}}}', "too_deep", "line 2"),
        (GOOD[:-1] + "]", "not_json", "expected , or }, found ']'"),
        ("{}", "not_a_task", '"train"'),
        ("[]", "not_a_task", "empty list"),
        ({"name": "left-pad", "dependencies": {}}, "not_a_task", "'dependencies'"),
        ({"a": [[[1]]], "b": [[[2]], [[3]]]}, "solutions_file", "challenges"),
        ('{"train": [], "train": []}', "duplicate_key", "'train'"),
        ({"train": [], "test": [PAIR]}, "no_train_pairs", "train: []"),
        ({"test": [PAIR]}, "no_train_pairs", "train: missing"),
        ({"train": [PAIR], "test": []}, "no_test_inputs", "test: []"),
        ({"train": [{"input": [[1]]}], "test": [PAIR]}, "bad_pair", "train[0].output"),
        ({"train": [PAIR], "test": [PAIR, [1]]}, "bad_pair", "test[1]: [1]"),
        (with_input([[1, 2], [3]]), "ragged_grid", "train[2].input row 1: 1 cells"),
        (with_input([[]]), "empty_grid", "train[2].input"),
        (with_input([1, 2]), "bad_grid", "train[2].input: [1, 2]"),
        (with_input([[1]] * 129), "grid_too_large", "129 rows and 1 columns; at most 128"),
        (with_input([[0, 1], [2, 10]]), "bad_cell", "train[2].input row 1, column 1: 10"),
        (with_input([[-1]]), "bad_cell", "row 0, column 0: -1"),
        (with_input([[True]]), "bad_cell", "True"),
        (with_input([[1.5]]), "bad_cell", "1.5"),
        ({"text": 3}, "bad_text", "text: 3"),
        ({"text": " \n"}, "empty_text", "text"),
        ({"messages": "hi"}, "bad_message", "messages: 'hi'"),
        ({"messages": [{"role": "user", "content": None}]}, "bad_message", "content: missing"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty_text", "messages"),
    ],
)
def test_a_bad_file_is_one_rejection_that_says_what_is_wrong(
    content: object, reason: str, said: str
):
    (rejection,) = parse(content)
    assert isinstance(rejection, RejectedTask)
    assert rejection.reason == reason, rejection.detail
    assert rejection.detail.startswith("folder/name.json")
    assert said in rejection.detail
    assert len(rejection.detail) < 400
    assert reason in REASONS


@pytest.mark.parametrize("bad_id", ["", "a\nb", "x" * 257, True, 1.5, ["a"], 10**300])
def test_a_bad_id_is_rejected_and_not_guessed(bad_id: object):
    items = parse(lines({"id": bad_id, **TASK}, {"id": "good", **TASK}))
    assert ids(items) == ["line-000001", "good"]
    assert reasons(items) == ["bad_id", ""]
    if isinstance(bad_id, str):
        assert reasons(parse({"good": TASK, bad_id: TASK})) == ["", "bad_id"]


def test_ids_that_recur_in_a_file_are_rejected_the_second_time():
    bad = {"id": "a", **with_input([])}
    for content in (
        f'{{"a": {GOOD}, "b": {GOOD}, "a": {GOOD}}}',
        lines({"id": "a", **TASK}, {"id": "b", **TASK}, {"id": "a", **TASK}),
        lines({"id": "a", **TASK}, {"id": "b", **TASK}, {"id": "a/0", "text": "one sample id"}),
    ):
        assert reasons(parse(content)) == ["", "", "duplicate_id"]
    assert reasons(parse(lines(bad, {"id": "a", **TASK}))) == ["empty_grid", "duplicate_id"]


# All layouts accept and reject the same JSON as Python's parser.

STRANGE = [
    ("[[NaN]]", "bad_cell", "nan"),
    ("[[1e999]]", "bad_cell", "inf"),
    (f"[[{10**4000}]]", "bad_cell", "0 to 9"),
    ('"\\ud83d"', "bad_grid", "ud83d"),
    ('[[1]], "input": [[2]]', "duplicate_key", "'input'"),
]
BROKEN = ["[[1,,2]]", "[[01]]", "{]", '"\\x"', '"\n"', "tru"]


def in_every_layout(value: str) -> list[str]:
    bad = json.dumps(with_input("HERE")).replace('"HERE"', value)
    return [
        f'{{"a": {GOOD}, "b": {bad}, "c": {GOOD}}}',
        f"[{GOOD}, {bad}, {GOOD}]",
        f"{GOOD}\n{bad}\n{GOOD}\n".replace('"\n"', '"\t"'),
    ]


@pytest.mark.parametrize(("value", "reason", "said"), STRANGE)
def test_a_strange_value_costs_its_record(value: str, reason: str, said: str):
    for content in in_every_layout(value):
        items = parse(content)
        assert reasons(items) == ["", reason, ""]
        assert isinstance(items[1], RejectedTask)
        assert said in items[1].detail


@pytest.mark.parametrize("value", [*BROKEN, f"[[{'9' * 5000}]]"])
def test_broken_json_costs_its_line_or_ends_its_document(value: str):
    *documents, json_lines = in_every_layout(value)
    assert reasons(parse(json_lines)) == ["", "not_json", ""]
    for content in documents:
        first, last = parse(content)
        assert isinstance(first, Task)
        assert isinstance(last, RejectedTask)
        assert (last.task_id, last.reason) == ("", "not_json")
        assert "line " in last.detail


def test_a_fault_is_found_with_its_line_far_from_the_end_of_a_large_file(limit: int):
    good = [GOOD] * (3 * limit // len(GOOD))
    items = parse("[" + ",\n".join([*good, "[1,,2]", *good]) + "]")
    assert reasons(items[-1:]) == ["not_json"]
    assert isinstance(items[-1], RejectedTask)
    assert f"line {len(good) + 1}: Expecting value, found ',2]" in items[-1].detail


@pytest.mark.parametrize(
    "text", ['"caf\xe9"'.encode("latin-1"), b'"\\ud83d\\u0041"', b'"a\\ude00"', b'"\xed\xa0\x80"']
)
def test_text_that_is_not_unicode_is_rejected_and_never_altered(text: bytes):
    for content in (b'{"text": %b}\n{"text": "x"}' % text, b'[{"text": %b}, {"text": "x"}]' % text):
        assert reasons(parse(content)) == ["bad_encoding", ""]
    (kept,) = parse(b'{"text": "\\ud83d\\ude00 caf\xc3\xa9"}')
    assert isinstance(kept, Document)
    assert kept.text == "😀 café"


def test_the_tasks_before_the_end_of_a_cut_file_are_read():
    combined = json.dumps(dict.fromkeys("abcd", TASK))
    for end in range(combined.index('"c"') + 3, combined.index('"d"') - 2):
        items = parse(combined[:end])
        assert ids(items)[:2] == ["a", "b"]
        assert reasons(items)[-1] == "truncated_json"


class Endless(io.RawIOBase):
    """A file of `size` bytes that repeats a piece and is never completely in memory."""

    def __init__(self, start: bytes, piece: bytes, size: int) -> None:
        self._start, self._piece, self._left = start, piece, size

    def read(self, size: int = -1) -> bytes:
        start, self._start = self._start, b""
        pieces = min(size, self._left) // len(self._piece)
        self._left -= pieces * len(self._piece)
        return start + self._piece * pieces


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Set a small `MAX_RECORD_BYTES` and return it, which makes files beyond it quick to create."""
    size = 2**14
    for module in ("json_records", "parse"):
        monkeypatch.setattr(f"corpus.{module}.MAX_RECORD_BYTES", size)
    monkeypatch.setattr("corpus.parse._READ_BYTES", size // 16)
    return size


def test_a_record_over_the_limit_costs_its_line_or_ends_its_document(limit: int):
    big = json.dumps({"text": "x" * (3 * limit)})
    assert reasons(parse(f"{GOOD}\n{big}\n{GOOD}")) == ["", "record_too_large", ""]
    assert reasons(parse(f"[{GOOD}, {big}, {GOOD}]")) == ["", "record_too_large"]


@pytest.mark.parametrize(
    ("start", "piece", "reason"),
    [
        (b'{"text": "', b"never closed ", "record_too_large"),
        (b"{", b"\n", "truncated_json"),
        (b"[", b"[", "too_deep"),
        (b'{"a": [', b"{},", "record_too_large"),
        (b" ", b" ", "empty_file"),
        (b"{}\n", b'{"text": "', "not_a_task"),
    ],
)
def test_memory_is_bounded_whatever_the_file(limit: int, start: bytes, piece: bytes, reason: str):
    tracemalloc.start()
    try:
        file = Endless(start, piece, 400 * limit)
        first, *_ = parse_tasks(file, "endless")  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(first, RejectedTask)
    assert first.reason == reason
    assert peak < 60 * limit  # an empty object takes 64 bytes


keys = st.sampled_from(["train", "test", "input", "text", "messages", "id"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
grids = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=3)
good_pairs = st.lists(
    st.fixed_dictionaries({"input": grids, "output": grids}), min_size=1, max_size=3
)
good_tasks = st.fixed_dictionaries({"train": good_pairs, "test": good_pairs})
any_records = good_tasks | json_values | st.fixed_dictionaries({"text": st.text(max_size=20)})


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.text('{}[]",:\\ \n01ab', max_size=60).map(str.encode)
    | json_values.map(lambda value: json.dumps(value).encode())
)
@example(b"\xef\xbb\xbf")
@example(b'{"\\')
@example(b'{"a":{"text":"\\ud800"}}')
def test_no_bytes_raise_and_none_pass_in_silence(data: bytes):
    for source in ("x.json", "x.jsonl"):
        items = parse(data, source)
        assert items
        assert {*reasons(items)} <= {"", *REASONS}


@settings(deadline=None)
@given(st.lists(any_records, min_size=2, max_size=6), st.sampled_from([None, 2]))
def test_every_record_is_read_or_rejected_in_every_layout(records: list[Any], indent: int | None):
    named = {f"id-{index}": record for index, record in enumerate(records)}
    combined = {"first": TASK, **named, "last": TASK}
    items = parse(json.dumps(combined, indent=indent))
    assert ids(items) == list(combined)
    assert len(parse(lines(*({"id": k, "x": v} for k, v in combined.items())))) == len(combined)
    for item, record in zip(items[1:-1], records, strict=True):
        assert not isinstance(item, Task) or content_of(item) == record


@settings(deadline=None)
@given(good_tasks, st.integers(1, 40))
def test_pieces_of_any_size_give_the_same_items(task: dict[str, Any], size: int):
    class Trickle(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            return super().read(size)

    text = 'é\\"[{,}]\\😀'
    for content in (
        json.dumps({"a": task, "b": {"text": text}, "c": {"text": "é"}}, ensure_ascii=False),
        json.dumps([*range(20), task, {"text": text}, 1.5, -1e-3, task], indent=1),
        lines({"id": "a", **task}, {"id": text, "text": text}),
    ):
        data = content.encode()
        assert list(parse_tasks(Trickle(data), "x.json")) == parse(data, "x.json")


@pytest.mark.parametrize("name", ["training.json", "evaluation.json"])
def test_every_published_task_is_read_cell_for_cell(arc_tasks: Path, name: str):
    content = json.loads((arc_tasks / name).read_text())
    tasks = [item for item in parse(content, name) if isinstance(item, Task)]
    assert [task.task_id for task in tasks] == list(content)
    for task in tasks:
        assert content_of(task).items() <= content[task.task_id].items()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"train": {"a": TASK, "b": TASK}, "eval": {"c": TASK}}, ["a", "b", "c"]),
        (
            {"training": {"a": TASK}, "evaluation": {"a": TASK, "b": TASK}},
            ["a", "evaluation/a", "b"],
        ),
        ({"train": {"a": TASK}, "test": {"b": TASK}}, ["a", "b"]),
        (
            {"train": [{"id": "a", **TASK}, TASK], "test": [TASK]},
            ["a", "train-000001", "test-000000"],
        ),
        ([{"name": "a", "data": TASK}, {"name": "b", "data": GOOD}], ["a", "b"]),
        ([{"task_id": "a", "task": GOOD}], ["a"]),
        ([{"id": "a", "train": json.dumps([PAIR]), "test": json.dumps([PAIR])}], ["a"]),
    ],
)
def test_collections_as_people_publish_them(content: object, expected: list[str]):
    items = parse(content)
    assert ids(items) == expected
    assert all(isinstance(item, Task) and content_of(item) == TASK for item in items)


def test_a_bad_task_of_a_collection_costs_that_task():
    items = parse({"train": {"a": TASK, "b": {"train": []}, "c": 1}, "eval": {"d": TASK}})
    assert ids(items) == ["a", "b", "c", "d"]
    assert reasons(items) == ["", "no_train_pairs", "not_a_task", ""]
    (broken,) = parse([{"id": "a", "train": "[1,", "test": "[]"}])
    assert isinstance(broken, RejectedTask)
    assert broken.reason == "truncated_json"
    assert "task a: train: line 1" in broken.detail
    assert reasons(parse('[{"data": {}, "data": ' + GOOD + "}]")) == ["duplicate_key"]


def test_nulls_are_absent():
    said = [{"role": "user", "content": "Hi"}]
    records = [
        {"train": None, "test": None, "messages": said, "text": None, "id": None},
        {"id": None, "task_id": None, "name": "b", "messages": None, **TASK},
        {"train": None},
    ]
    items = parse(lines(*records), "x.jsonl")
    assert ids(items) == ["line-000001", "b", "line-000003"]
    assert reasons(items) == ["", "", "not_a_task"]
    for record in records[:2]:
        assert type(parse({"train": None, **record})[0]) is type(parse([record])[0])


def test_names_that_repeat_do_not_cost_records():
    """Only the first record with a name uses it as its id, and a single notice reports that."""
    names = ["cat", "dog", "cat", None, "", 1.5, "dog", "x"]
    items = parse(lines(*({"name": name, "text": f"{i}"} for i, name in enumerate(names))))
    documents = [item for item in items if isinstance(item, Document)]
    assert [item.text for item in documents] == [str(i) for i in range(8)]
    assert ids(list(documents))[:4] == ["cat", "dog", "line-000003", "line-000004"]
    assert ids(list(documents))[4:] == ["line-000005", "line-000006", "line-000007", "x"]
    (notice,) = [item for item in items if isinstance(item, Notice)]
    assert (notice.task_id, notice.reason) == ("line-000003", "repeated_name")
    assert "'cat'" in notice.detail
    assert notice.reason in NOTICE_REASONS
