import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.task import RejectedTask
from transforms.write_rejected import count_reasons, errors_file, write_rejected

REJECTED = [
    RejectedTask("a.json", "2", "bad_cell", "cell 10 of a.json, é"),
    RejectedTask("a.json", "1", "bad_cell", "cell -1"),
    RejectedTask("b.json", "", "not_json", "line 3"),
]


def test_a_dead_letter_is_a_line_with_its_file_task_and_reason(tmp_path: Path):
    write_rejected(REJECTED, str(tmp_path))
    lines = (tmp_path / "errors" / "rejected.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"source": "a.json", "task_id": "1", "reason": "bad_cell", "detail": "cell -1"},
        {"source": "a.json", "task_id": "2", "reason": "bad_cell", "detail": REJECTED[0].detail},
        {"source": "b.json", "task_id": "", "reason": "not_json", "detail": "line 3"},
    ]


@settings(max_examples=6)
@given(st.permutations(REJECTED))
def test_the_file_does_not_depend_on_the_order_of_arrival(tmp_path_factory, rejected):
    folder, other = (str(tmp_path_factory.mktemp("out")) for _ in range(2))
    write_rejected(REJECTED, folder)
    write_rejected(rejected, other)
    assert Path(errors_file(folder)).read_bytes() == Path(errors_file(other)).read_bytes()


def test_without_dead_letters_there_is_no_file(tmp_path: Path):
    write_rejected([], str(tmp_path))
    assert not (tmp_path / "errors").exists()
    write_rejected(REJECTED, str(tmp_path))
    write_rejected([], str(tmp_path))
    assert not Path(errors_file(str(tmp_path))).exists(), "an earlier attempt's are not this run's"


def test_reasons_are_counted():
    assert count_reasons(REJECTED) == {"bad_cell": 2, "not_json": 1}
    assert count_reasons([]) == {}
