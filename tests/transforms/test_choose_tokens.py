from dataclasses import replace

import numpy as np
import pytest

from activation_dataset.prompts import Prompt
from transforms.choose_tokens import TokenChoiceError, UnknownTokensError, choose, parse_choice
from transforms.windows import windows_of, with_bos

SPECIAL = frozenset({0, 7})
CELLS = [[-1] * 4, [0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [-1] * 4, [-1, 0, 0, 0], [-1] * 4]
PROMPT = Prompt(
    *("s", "t", np.array([0, 11, 12, 13, 7, 15, 16], np.int32), np.array(CELLS, np.int16)),
    turns=np.array([-1, 0, 0, 1, -1, 2, 2], np.int16),
    roles=("user", "assistant", "user"),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("last:2", [5, 6]),
        ("last:100", [0, 1, 2, 3, 4, 5, 6]),
        ("first:3", [0, 1, 2]),
        ("every:3", [0, 3, 6]),
        ("skip_first:5", [5, 6]),
        ("no_special", [1, 2, 3, 5, 6]),
        ("cells", [1, 2, 3, 5]),
        ("text", [0, 4, 6]),
        ("input", [1, 2, 5]),
        ("output", [3]),
        ("test_input", [5]),
        ("train_input", [1, 2]),
        ("assistant", [3]),
        ("role:user", [1, 2, 5, 6]),
        ("system", []),
        ("user & last:3 & all", [5, 6]),
        ("sample:1", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_terms(text: str, expected: list[int]):
    chosen = choose(PROMPT, parse_choice(text), SPECIAL)
    assert (chosen.positions is None) == (len(expected) == PROMPT.num_tokens)
    assert chosen.chosen_ids.tolist() == PROMPT.token_ids[expected].tolist()
    assert chosen.token_ids is PROMPT.token_ids


@pytest.mark.parametrize(
    "text",
    ["", "assistants", "last:0", "last", "every:x", "sample:0", "sample:1.5", "all:3", "a|b"],
)
def test_a_term_that_is_not_understood_is_named(text: str):
    with pytest.raises(TokenChoiceError, match="skip_first:N") as error:
        parse_choice(text and f"all&{text}")
    assert repr(text) in str(error.value)


def test_a_sample_is_the_same_whatever_the_windows():
    ids = np.arange(20_000, dtype=np.int32)
    document = replace(
        PROMPT, token_ids=ids, cells=np.full((len(ids), 4), -1, np.int16), turns=None, roles=()
    )
    choice = parse_choice("sample:0.1:3")
    whole = choose(document, choice, SPECIAL).chosen_ids
    assert abs(len(whole) - 2000) < 150
    parts = [with_bos(part, 0) for part in windows_of(document, 100, 7)]
    found = [choose(part, parse_choice("sample:0.1:3&skip_first:1"), SPECIAL) for part in parts]
    assert np.concatenate([each.chosen_ids for each in found]).tolist() == whole.tolist()
    other = choose(document, parse_choice("sample:0.1:4"), SPECIAL).chosen_ids
    assert abs(len(np.intersect1d(whole, other)) - 200) < 60
    renamed = choose(replace(document, sample_id="r"), choice, SPECIAL).chosen_ids
    assert abs(len(np.intersect1d(whole, renamed)) - 200) < 60


def test_a_document_named_like_a_window_is_sampled_like_its_windows():
    ids = np.arange(500, dtype=np.int32)
    document = replace(
        PROMPT,
        sample_id="f#a@0",
        task_id="a@0",
        token_ids=ids,
        cells=np.full((len(ids), 4), -1, np.int16),
        turns=None,
        roles=(),
    )
    choice = parse_choice("sample:0.5")
    whole = choose(document, choice, SPECIAL).chosen_ids.tolist()
    parts = [choose(part, choice, SPECIAL).chosen_ids for part in windows_of(document, 100, 0)]
    assert np.concatenate(parts).tolist() == whole
    other = replace(document, sample_id="f#a", task_id="a")
    assert choose(other, choice, SPECIAL).chosen_ids.tolist() != whole


def test_context_stays_out():
    *_, last = windows_of(PROMPT, 4, 2)
    assert choose(last, parse_choice("last:3"), SPECIAL).chosen_ids.tolist() == [16]
    assert choose(last, parse_choice("first:2"), SPECIAL).chosen_ids.tolist() == []


def test_a_prepended_token_is_special():
    prompt = with_bos(PROMPT, 55)
    assert choose(prompt, parse_choice("no_special"), SPECIAL).chosen_ids[0] == 11
    assert choose(prompt, parse_choice("first:1"), SPECIAL).chosen_ids.tolist() == [55]


@pytest.mark.parametrize("text", ["cells", "text", "output"])
def test_unknown_cells_cannot_be_chosen(text: str):
    unknown = replace(PROMPT, cells=np.full_like(PROMPT.cells, -2))
    with pytest.raises(UnknownTokensError, match=text) as error:
        choose(unknown, parse_choice(text), SPECIAL)
    assert error.value.reason == "unknown_cells"
