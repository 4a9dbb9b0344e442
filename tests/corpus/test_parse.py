import gzip
import io
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus import REASONS, Document, Message, Pair, RejectedTask, Task, parse_tasks

ARC = Path(__file__).resolve().parents[3] / "shared" / "data" / "arc_agi_1"
needs_arc = pytest.mark.skipif(not ARC.is_dir(), reason="ARC-AGI-1 is not beside the repository")

PAIR: dict[str, Any] = {"input": [[0, 1], [2, 3]], "output": [[4]]}
TASK: dict[str, Any] = {"train": [PAIR], "test": [PAIR]}
Item = Task | Document | RejectedTask


def parse(content: object, source: str = "folder/name.json") -> list[Item]:
    """Parse bytes as they are, text as UTF-8, and anything else as the JSON of it."""
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    data = content.encode() if isinstance(content, str) else content
    return list(parse_tasks(io.BytesIO(data), source))


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def ids(items: list[Item]) -> list[str]:
    return [item.document_id if isinstance(item, Document) else item.task_id for item in items]


def only_rejection(content: object, source: str = "folder/name.json") -> RejectedTask:
    (item,) = parse(content, source)
    assert isinstance(item, RejectedTask), item
    assert item.source == source
    assert item.detail.startswith(source)
    return item


def only_task(content: object, source: str = "folder/name.json") -> Task:
    (item,) = parse(content, source)
    assert isinstance(item, Task), item
    return item


# Layouts.


def test_a_task_is_named_by_its_file_and_keeps_every_cell():
    task = only_task({"name": "another", "extra": {"train": 1}, **TASK}, "sub/007bbfb7.json")
    pair = Pair(((0, 1), (2, 3)), ((4,),))
    assert task == Task("007bbfb7", "sub/007bbfb7.json", (pair,), (pair,))
    assert task.sample_id(0) == "sub/007bbfb7.json#007bbfb7/0"


def test_a_file_that_is_decompressed_while_read_is_named_without_the_suffix():
    assert only_task(TASK, "a/x.json.gz").task_id == "x"


def test_the_combined_file_with_and_without_answers():
    hidden = {"train": [PAIR], "test": [{"input": [[5]]}, {"input": [[6]], "output": None}]}
    with_answers, without = parse({"one": TASK, "two": hidden})
    assert isinstance(with_answers, Task)
    assert isinstance(without, Task)
    assert with_answers.test[0].output == ((4,),)
    assert without.task_id == "two"
    assert without.test == (Pair(((5,),), None), Pair(((6,),), None))


@pytest.mark.parametrize("indent", [None, 0, 1, 4])
def test_layout_of_the_json_does_not_matter(indent: int | None):
    combined = {"one": TASK, "two": TASK}
    assert ids(parse(json.dumps(combined, indent=indent))) == ["one", "two"]
    assert ids(parse(json.dumps(TASK, indent=indent))) == ["name"]
    listed = [{"id": "one", **TASK}, {"id": "two", **TASK}]
    assert ids(parse(json.dumps(listed, indent=indent))) == ["one", "two"]


def test_json_lines_take_their_ids_from_id_task_id_name_or_the_line():
    content = (
        lines({"id": "a", **TASK}) + "\n" + lines({"task_id": 7, **TASK}, {"name": "c", **TASK})
    )
    assert ids(parse(content + lines(TASK))) == ["a", "7", "c", "line-000005"]


def test_one_record_is_a_line_or_a_file_as_its_name_says():
    record = lines({"id": "a", **TASK})
    assert ids(parse(record, "x.jsonl")) == ["a"]
    assert ids(parse(record, "x.ndjson.gz")) == ["a"]
    assert ids(parse(record, "x.json")) == ["x"]


def test_documents_as_text_and_as_messages():
    said = [{"role": "user", "content": "Hi", "extra": 1}, {"role": "assistant", "content": "Ho"}]
    items = parse(lines({"id": "t", "text": " as it is\n"}, {"id": "m", "messages": said}))
    assert items == [
        Document("t", "folder/name.json", " as it is\n"),
        Document(
            "m", "folder/name.json", None, (Message("user", "Hi"), Message("assistant", "Ho"))
        ),
    ]
    assert isinstance(items[0], Document)
    assert items[0].sample_id == "folder/name.json#t"


def test_a_document_may_be_a_whole_file_or_stand_in_a_list_or_in_a_combined_file():
    document = {"text": "words"}
    assert ids(parse(document)) == ["name"]
    assert ids(parse({"id": "own", **document})) == ["own"]
    assert ids(parse([document, {"id": 3, **document}])) == ["item-000000", "3"]
    assert ids(parse({"a": TASK, "b": document})) == ["a", "b"]


def test_extra_keys_before_the_telling_one_do_not_mislead():
    assert ids(parse({"metadata": {"author": "x"}, "tags": [[[1]]], "n": 1, **TASK})) == ["name"]
    items = parse({"version": 3, "notes": {"a": 1}, "one": TASK})
    assert ids(items) == ["version", "notes", "one"]
    assert [type(item) for item in items] == [RejectedTask, RejectedTask, Task]


@pytest.mark.parametrize(
    ("count", "sizes"), [(2, [2]), (6, [6]), (7, [7]), (8, [6, 2]), (13, [6, 7]), (14, [6, 6, 2])]
)
def test_rearc_pairs_become_tasks_of_six_in_order(count: int, sizes: list[int]):
    pairs = [{"input": [[index % 10]], "output": [[index // 10]]} for index in range(count)]
    tasks = parse(pairs, "tasks/abc.json")
    assert ids(tasks) == [f"abc-{index:06d}" for index in range(len(sizes))]
    seen = []
    for task, size in zip(tasks, sizes, strict=True):
        assert isinstance(task, Task)
        assert len(task.train) == size - 1
        assert len(task.test) == 1
        seen += [{"input": pair.input, "output": pair.output} for pair in task.train + task.test]
    assert json.loads(json.dumps(seen)) == pairs


def test_a_bad_rearc_pair_costs_that_pair():
    pairs: list[dict[str, Any]] = [{"input": [[1]], "output": [[index]]} for index in range(9)]
    pairs[3] = {"input": [[1]]}
    items = parse(pairs, "abc.json")
    assert ids(items) == ["item-000003", "abc-000000", "abc-000001"]
    assert isinstance(items[0], RejectedTask)
    assert items[0].reason == "bad_pair"
    assert only_rejection([PAIR]).reason == "no_train_pairs"


def barc(count: int, **more: object) -> dict[str, object]:
    """As BARC has it: pairs of grids of floats, beside the program that made them."""
    pairs = [[[[index % 10 + 0.0, 1.0]], [[index // 10 + 0.0]]] for index in range(count)]
    return {
        "source": "def main(grid):\n    return grid",
        "examples": pairs,
        "seeds": ["a.py"],
        **more,
    }


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(2, [2]), (4, [4]), (7, [7]), (8, [6, 2]), (30, [6] * 5)],
)
def test_barc_pairs_become_tasks_of_six_in_order(count: int, sizes: list[int]):
    everything = parse(lines(TASK, barc(count)), "barc.jsonl")[1:]
    tasks = [task for task in everything if isinstance(task, Task)]
    assert ids(everything) == [f"line-000002-{index:06d}" for index in range(len(sizes))]
    assert [len(task.train) + len(task.test) for task in tasks] == sizes
    found = [pair for task in tasks for pair in (*task.train, *task.test)]
    assert found == [Pair(((index % 10, 1),), ((index // 10,),)) for index in range(count)]
    assert all(type(cell) is int for pair in found for row in pair.input for cell in row)


def test_barc_records_stand_wherever_a_record_does():
    assert ids(parse(lines(barc(3, id="x")), "barc.jsonl")) == ["x-000000"]
    assert ids(parse([barc(9), TASK])) == [
        "item-000000-000000",
        "item-000000-000001",
        "item-000001",
    ]
    assert ids(parse(barc(3), "sub/one.json")) == ["one-000000"]
    assert ids(parse({"a": barc(3), "b": TASK})) == ["a-000000", "b"]
    as_objects = {"examples": [{"input": [[1]], "output": [[2]]}] * 3}
    assert only_task(as_objects).train == (Pair(((1,),), ((2,),)),) * 2


def test_examples_beside_other_content_are_not_pairs():
    assert only_task({**barc(9), **TASK}).task_id == "name"
    (item,) = parse({"text": "some", "examples": [1]})
    assert isinstance(item, Document)


@pytest.mark.parametrize(
    ("record", "reason", "said"),
    [
        (barc(0), "no_train_pairs", "examples: []"),
        (barc(1), "no_train_pairs", "there is only one pair"),
        ({"examples": [[[[1]], [[2]], [[3]]]]}, "bad_pair", "examples[0]: "),
        ({"examples": [[[[1]], [[1]]], [[[1]], [[2.5]]]]}, "bad_cell", "examples[1].output row 0"),
        ({"examples": [[[[1]], None]]}, "bad_pair", "examples[0].output: missing"),
        ({"examples": "none"}, "no_train_pairs", "examples: 'none'"),
    ],
)
def test_a_bad_barc_record_is_rejected_whole(record: object, reason: str, said: str):
    first, second = parse(lines(record, TASK), "a.jsonl")
    assert isinstance(first, RejectedTask)
    assert first.reason == reason
    assert said in first.detail
    assert isinstance(second, Task)


def test_byte_order_mark_and_line_ends_of_windows():
    data = b"\xef\xbb\xbf" + lines({"id": "a", **TASK}, {"id": "b", **TASK}).encode()
    assert ids(parse(data.replace(b"\n", b"\r\n"))) == ["a", "b"]
    assert ids(parse(b"\xef\xbb\xbf \n" + json.dumps(TASK).encode())) == ["name"]


def test_whole_floats_are_cells():
    task = only_task({"train": [{"input": [[3.0, -0.0]], "output": [[9.0]]}], "test": [PAIR]})
    assert task.train[0].input == ((3, 0),)
    assert type(task.train[0].input[0][0]) is int


# What is rejected, and how it is said.


def with_input(grid: object) -> dict[str, Any]:
    return {"train": [PAIR, PAIR, {"input": grid, "output": [[1]]}], "test": [PAIR]}


@pytest.mark.parametrize(
    ("content", "reason", "said"),
    [
        (b"", "empty_file", "0 bytes"),
        (b" \n\n", "empty_file", "white space"),
        (gzip.compress(b"{}"), "compressed_file", "gzip"),
        (json.dumps(TASK).encode("utf-16"), "bad_encoding", "UTF-8"),
        (b"train,test\n1,2\n", "not_json", "'train,test"),
        (b"12", "not_json", "begins with '12'"),
        ("{'train': []}", "not_json", "double quotes"),
        (json.dumps(TASK)[:-9], "truncated_json", "cut off"),
        ("[" * 100_000, "truncated_json", "cut off"),
        ('{"train": ' + "[" * 50_000 + "]" * 50_000 + "}", "too_deep", "nested"),
        (json.dumps(TASK) + " x", "not_json", "'x'"),
        (json.dumps(TASK)[:-1] + "]", "not_json", "] where { is open"),
        ("{}", "not_a_task", '"train"'),
        ("[]", "not_a_task", "empty list"),
        ({"name": "left-pad", "dependencies": {}}, "not_a_task", "'dependencies'"),
        ({"a": [[[1]]], "b": [[[2]], [[3]]]}, "solutions_file", "challenges"),
        ('{"train": [], "train": []}', "duplicate_key", "'train'"),
        ({"train": [], "test": [PAIR]}, "no_train_pairs", "train: []"),
        ({"test": [PAIR]}, "no_train_pairs", "train: missing"),
        ({"train": [PAIR], "test": []}, "no_test_inputs", "test: []"),
        ({"train": [PAIR]}, "no_test_inputs", "test: missing"),
        ({"train": [{"input": [[1]]}], "test": [PAIR]}, "bad_pair", "train[0].output"),
        ({"train": [PAIR], "test": [PAIR, [1]]}, "bad_pair", "test[1]: [1]"),
        (with_input([[1, 2], [3]]), "ragged_grid", "train[2].input row 1: 1 cells"),
        (with_input([]), "empty_grid", "train[2].input"),
        (with_input([[]]), "empty_grid", "train[2].input"),
        (with_input([[1], []]), "ragged_grid", "row 1: 0 cells"),
        (with_input("12"), "bad_grid", "train[2].input: '12'"),
        (with_input([1, 2]), "bad_grid", "train[2].input: [1, 2]"),
        (with_input([[1]] * 129), "grid_too_large", "129 rows and 1 columns; at most 128"),
        (with_input([[1] * 129]), "grid_too_large", "1 rows and 129 columns; at most 128"),
        (with_input([[0, 1], [2, 10]]), "bad_cell", "train[2].input row 1, column 1: 10"),
        (with_input([[-1]]), "bad_cell", "row 0, column 0: -1"),
        (with_input([[True]]), "bad_cell", "True"),
        (with_input([[1.5]]), "bad_cell", "1.5"),
        (with_input([[float("nan")]]), "bad_cell", "nan"),
        (with_input([["3"]]), "bad_cell", "'3'"),
        (with_input([[None]]), "bad_cell", "None"),
        (with_input([[[1]]]), "bad_cell", "[1]"),
        (with_input([[10**4000]]), "bad_cell", "from 0 to 9"),
        (json.dumps(with_input([[1]])).replace("[[1]]", f"[[{'9' * 5000}]]"), "not_json", "digits"),
        ({"text": 3}, "bad_text", "text: 3"),
        ({"text": " \n"}, "empty_text", "text"),
        ({"text": "half \ud83d"}, "bad_encoding", "character 5"),
        (b'{"text": "caf\xe9 x"}', "bad_encoding", "e9 20"),
        ({"messages": "hi"}, "bad_message", "messages: 'hi'"),
        ({"messages": []}, "empty_text", "messages"),
        ({"messages": ["hi"]}, "bad_message", "messages[0]: 'hi'"),
        (
            {"messages": [{"role": "human", "content": "x"}]},
            "bad_message",
            "'human'; one of system",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "bad_message", "content: None"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty_text", "messages"),
    ],
)
def test_a_bad_file_is_one_rejection_that_says_what_is_wrong(
    content: object, reason: str, said: str
):
    rejection = only_rejection(content)
    assert rejection.reason == reason, rejection.detail
    assert said in rejection.detail
    assert len(rejection.detail) < 400
    assert rejection.reason in REASONS


def test_the_detail_names_file_task_field_value_and_what_is_allowed():
    items = parse({"good": TASK, "bad": with_input([[0, 1, 2, 3, 11]])}, "training.json")
    assert items[1] == RejectedTask(
        "training.json",
        "bad",
        "bad_cell",
        "training.json, task bad: train[2].input row 0, column 4: 11 is not a cell; cells are "
        "whole numbers from 0 to 9 (rows and columns count from 0)",
    )


@pytest.mark.parametrize("bad_id", ["", "a\nb", "x" * 257, None, True, 1.5, ["a"], 10**300])
def test_a_bad_id_is_rejected_and_not_guessed(bad_id: object):
    items = parse(lines({"id": bad_id, **TASK}, {"id": "good", **TASK}))
    assert ids(items) == ["line-000001", "good"]
    assert isinstance(items[0], RejectedTask)
    assert items[0].reason == "bad_id"


def test_ids_that_recur_in_a_file_are_rejected_the_second_time():
    records = [("a", [[1]]), ("b", [[2]]), ("a", [[3]])]
    combined = ",".join(f'"{key}": {json.dumps(with_input(grid))}' for key, grid in records)
    in_lines = lines(*({"id": key, **with_input(grid)} for key, grid in records))
    for content in (f"{{{combined}}}", in_lines):
        first, _, last = parse(content)
        assert isinstance(first, Task)
        assert first.train[2].input == ((1,),)
        assert isinstance(last, RejectedTask)
        assert (last.task_id, last.reason) == ("a", "duplicate_id")


def test_an_id_is_taken_even_if_its_first_record_was_rejected():
    items = parse(lines({"id": "a", **with_input([])}, {"id": "a", **TASK}))
    assert [item.reason for item in items if isinstance(item, RejectedTask)] == [
        "empty_grid",
        "duplicate_id",
    ]


def test_sample_ids_of_a_task_and_a_document_cannot_collide():
    items = parse(lines({"id": "a", **TASK}, {"id": "a/0", "text": "words"}))
    assert isinstance(items[1], RejectedTask)
    assert items[1].reason == "duplicate_id"


def test_a_key_that_stands_twice_deep_inside_is_found():
    pair = '{"input": [[1]], "input": [[2]], "output": [[3]]}'
    task = f'{{"train": [{pair}], "test": [{json.dumps(PAIR)}]}}'
    for content in (task, f'{{"a": {task}}}', f'[{task}, {{"text": "words"}}]'):
        rejection = parse(content)[0]
        assert isinstance(rejection, RejectedTask)
        assert rejection.reason == "duplicate_key"
        assert "'input'" in rejection.detail


@pytest.mark.parametrize(
    "broken", ["[[1,,2]]", "[[NaN]]", "[[1 2]]", "[[0x1]]", "[[Infinity]]", "{]", '"\\x"', "[[01]]"]
)
def test_what_follows_a_broken_record_is_still_read(broken: str):
    bad = json.dumps(with_input("HERE")).replace('"HERE"', broken)
    good = json.dumps(TASK)
    contents = [
        f'{{"a": {good}, "b": {bad}, "c": {good}}}',
        f"[{good}, {bad}, {good}]",
        f"{good}\n{bad}\n{good}\n",
    ]
    for content in contents:
        assert [type(item) for item in parse(content)] == [Task, RejectedTask, Task]


@pytest.mark.parametrize(
    "broken", ["{", '{"train": [[0, 0,', '{"id": "x"', "]", '"', "junk", "\ufffd"]
)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_broken_line_costs_that_line_wherever_it_stands(broken: str, position: int):
    records = [json.dumps({"id": name, **TASK}) for name in "abc"]
    records.insert(position, broken)
    items = parse("\n".join(records))
    assert Counter(type(item) for item in items) == {Task: 3, RejectedTask: 1}
    rejection = items[position]
    assert isinstance(rejection, RejectedTask)
    assert rejection.reason == "not_json"
    assert f"line {position + 1}" in rejection.detail


def test_the_tasks_before_the_end_of_a_cut_file_are_read():
    combined = json.dumps(dict.fromkeys("abcd", TASK))
    for end in range(combined.index('"c"') + 3, combined.index('"d"') - 2):
        items = parse(combined[:end])
        assert ids(items)[:2] == ["a", "b"]
        assert isinstance(items[-1], RejectedTask)
        assert items[-1].reason == "truncated_json"


class Endless(io.RawIOBase):
    """A file of `size` bytes that repeats a piece and never stands in memory."""

    def __init__(self, start: bytes, piece: bytes, size: int) -> None:
        self._start, self._piece, self._left = start, piece, size

    def read(self, size: int = -1) -> bytes:
        start, self._start = self._start, b""
        pieces = min(size, self._left) // len(self._piece)
        self._left -= pieces * len(self._piece)
        return start + self._piece * pieces


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """A small `MAX_RECORD_BYTES`, so that files beyond it are quick to make."""
    size = 2**14
    for module in ("json_stream", "layouts", "parse"):
        monkeypatch.setattr(f"corpus.{module}.MAX_RECORD_BYTES", size)
    monkeypatch.setattr("corpus.json_stream.CHUNK_BYTES", size // 16)
    return size


def test_a_record_over_the_limit_is_skipped_in_every_layout(limit: int):
    big = json.dumps({"text": "x" * (limit + 1)})
    good = json.dumps(TASK)
    for content in (f'{{"a": {good}, "b": {big}, "c": {good}}}', f"{good}\n{big}\n{good}"):
        first, rejection, last = parse(content)
        assert isinstance(first, Task)
        assert isinstance(last, Task)
        assert isinstance(rejection, RejectedTask)
        assert rejection.reason == "record_too_large"


@pytest.mark.parametrize(
    ("start", "piece", "reason"),
    [
        (b'{"text": "', b"never closed ", "truncated_json"),
        (b'{"text": "', b'\\"', "truncated_json"),
        (b"{", b"\n", "truncated_json"),
        (b"[", b"[", "truncated_json"),
        (b'{"a": [', b"{},", "truncated_json"),
        (b'{"train": ', b"[[1,", "truncated_json"),
        (b'{"train": [[', b"[1, 2],", "truncated_json"),
        (b" ", b" ", "empty_file"),
        (b"{}\n", b'{"text": "', "not_a_task"),
    ],
)
def test_memory_is_bounded_whatever_the_file(limit: int, start: bytes, piece: bytes, reason: str):
    tracemalloc.start()
    try:
        file = Endless(start, piece, 12 * limit)
        items = parse_tasks(file, "endless")  # type: ignore[arg-type]
        reasons = [item.reason for item in items if isinstance(item, RejectedTask)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reasons[0] == reason
    assert peak < 6 * limit


def test_an_object_without_a_telling_member_is_not_held_for_ever():
    numbers = {f"id-{index}": index for index in range(5000)}
    items = parse({**numbers, "task": TASK})
    assert len(items) == 5001
    assert isinstance(items[-1], Task)
    solutions = {f"id-{index}": [[[index]]] for index in range(5000)}
    assert only_rejection(solutions).reason == "solutions_file"


def test_items_come_while_the_file_is_read():
    class Interrupted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) or self.fail()

        def fail(self) -> bytes:
            raise OSError("connection lost")

    content = "[" + ",".join([json.dumps({"text": "x" * 1000})] * 40_000)
    items = parse_tasks(Interrupted(content.encode()), "x")
    assert isinstance(next(items), Document)
    with pytest.raises(OSError, match="connection lost"):
        list(items)


# Properties.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["train", "test", "input", "output", "text", "messages", "id", "a", "b"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
grids = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=3)
good_pairs = st.fixed_dictionaries({"input": grids, "output": grids})
good_tasks = st.fixed_dictionaries(
    {
        "train": st.lists(good_pairs, min_size=1, max_size=3),
        "test": st.lists(good_pairs, min_size=1, max_size=2),
    }
)
any_records = good_tasks | json_values | st.fixed_dictionaries({"text": st.text(max_size=20)})


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text('{}[]",:\\ \n01ab', max_size=60).map(str.encode))
@example(b"\xef\xbb\xbf")
@example(b'{"\\')
@example(b"[1")
@example(b'{"a":{"text":"\\ud800"}}')
def test_no_bytes_raise_and_none_pass_in_silence(data: bytes):
    items = parse(data)
    assert items
    for item in items:
        assert not isinstance(item, RejectedTask) or (item.reason in REASONS and item.detail)


@settings(deadline=None)
@given(json_values)
def test_no_json_raises(value: object):
    for source in ("x.json", "x.jsonl"):
        for item in parse(value, source):
            assert not isinstance(item, RejectedTask) or item.reason in REASONS


@settings(deadline=None)
@given(st.lists(any_records, min_size=2, max_size=6), st.sampled_from([None, 2]))
def test_every_record_is_read_or_rejected_in_every_layout(records: list[Any], indent: int | None):
    named = {f"id-{index}": record for index, record in enumerate(records)}
    expected = [json.loads(json.dumps(record)) for record in records]
    combined = {"first": TASK, **named, "last": TASK}
    items = parse(json.dumps(combined, indent=indent))
    assert ids(items) == list(combined)
    in_lines = parse(lines({"id": "first", **TASK}, *({"id": k, "x": v} for k, v in named.items())))
    assert len(in_lines) == 1 + len(records)
    for item, record in zip(items[1:-1], expected, strict=True):
        if isinstance(item, Task):
            read = [[pair.input, pair.output] for pair in item.train + item.test]
            pairs = record["train"] + record["test"]
            assert json.loads(json.dumps(read)) == [[p["input"], p.get("output")] for p in pairs]


@settings(deadline=None)
@given(good_tasks, st.integers(1, 40))
def test_pieces_of_any_size_give_the_same_items(task: dict[str, Any], size: int):
    class Trickle(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            return super().read(size)

    text = 'é\\"[{,}]\\'
    for content in (
        json.dumps({"a": task, "b": {"text": text}, "c": {"text": "é"}}, ensure_ascii=False),
        json.dumps([task, {"text": text}, task], indent=1),
        lines({"id": "a", **task}, {"id": text, "text": text}),
    ):
        data = content.encode()
        assert list(parse_tasks(Trickle(data), "x.json")) == parse(data, "x.json")


# Real data.


def published(name: str) -> Iterator[Item]:
    with (ARC / name).open("rb") as file:
        yield from parse_tasks(file, name)


@needs_arc
@pytest.mark.parametrize("name", ["training.json", "evaluation.json"])
def test_every_published_task_is_read_cell_for_cell(name: str):
    expected = {
        task_id: {part: task[part] for part in ("train", "test")}  # some have a name, too
        for task_id, task in json.loads((ARC / name).read_text()).items()
    }
    read = {}
    for task in published(name):
        assert isinstance(task, Task), task
        read[task.task_id] = {
            part: [{"input": pair.input, "output": pair.output} for pair in pairs]
            for part, pairs in (("train", task.train), ("test", task.test))
        }
    assert len(read) == 400
    assert json.loads(json.dumps(read)) == expected


@needs_arc
def test_the_competition_files():
    challenges = list(published("arc-agi_training_challenges.json"))
    assert len(challenges) == 400
    assert all(isinstance(task, Task) and task.test[0].output is None for task in challenges)
    (rejection,) = published("arc-agi_training_solutions.json")
    assert isinstance(rejection, RejectedTask)
    assert rejection.reason == "solutions_file"


@needs_arc
def test_a_file_for_each_task():
    paths = sorted((ARC / "per_task").glob("*.json"))
    assert paths
    for path in paths:
        (task,) = published(f"per_task/{path.name}")
        assert isinstance(task, Task), task
        assert task.task_id == path.stem
