"""A few thousand inputs of `reliability.fuzz`."""

import time

import pytest

from reliability.fuzz import Hang, Target, fuzz, no_longer_than, targets


@pytest.mark.parametrize("name", targets())
def test_no_input_makes_a_reader_fail_or_accept_nonsense(name: str):
    answers = fuzz(targets()[name](), inputs=3000, seed=7)
    assert answers.total() == 3000
    assert len(answers) == 2, "inputs of both kinds"


def test_the_input_that_raises_an_error_is_shown():
    def check(data: bytes) -> str:
        if data != b"valid":
            raise KeyError(data)
        return "accepted"

    with pytest.raises(KeyError) as error:
        fuzz(Target([b"valid"], check), inputs=100, seed=7)
    assert error.value.__notes__[0].startswith("the input: b'")


def test_a_hang_is_found():
    with pytest.raises(Hang), no_longer_than(1):
        time.sleep(60)
