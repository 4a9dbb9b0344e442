import json
from pathlib import Path

from corpus.task import RejectedTask
from transforms.write_rejected import count_reasons, errors_file, write_rejected

REJECTED = [
    RejectedTask("a.json", "1", "bad_cell", "cell -1"),
    RejectedTask("a.json", "2", "bad_cell", "cell 10 of a.json, é"),
    RejectedTask("b.json", "", "not_json", "line 3"),
]


def test_a_dead_letter_is_a_line_in_an_order_of_its_own(tmp_path: Path):
    for arrived in (REJECTED, REJECTED[::-1]):
        write_rejected(arrived, str(tmp_path))
        lines = Path(errors_file(str(tmp_path))).read_text("utf-8").splitlines()
        assert [RejectedTask(**json.loads(line)) for line in lines] == REJECTED
    write_rejected([], str(tmp_path))
    assert not Path(errors_file(str(tmp_path))).exists(), "an earlier attempt's are not this run's"


def test_reasons_are_counted():
    assert count_reasons(REJECTED) == {"bad_cell": 2, "not_json": 1}
