"""Tests of the tokens of vectors, the vectors of tokens, and the parts of sample ids."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from activation_dataset import ActivationDataset
from activation_dataset.reading.provenance import SampleName
from tests.activation_dataset.synthetic import make_prompts, write_dataset

SHARDS = [[3, 40, 1], [7, 9], [12, 2, 30]]


def prompts_of(lengths, seed):
    """Return prompts of tasks with shared ids, with text and cells of all kinds in any order."""
    rng = np.random.default_rng(seed)
    prompts = []
    for prompt in make_prompts(lengths, seed):
        length = prompt.num_tokens
        cells = rng.integers([-1, 0, 0, 0], [3, 2, 3, 4], (length, 4)).astype(np.int16)
        cells[rng.random(length) < 0.3] = -1
        prompts.append(replace(prompt, cells=cells))
    return prompts


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    found = {}
    for pooling in ("none", "last", "mean"):
        path = tmp_path_factory.mktemp(pooling)
        write_dataset(path, SHARDS, pooling, prompts_of=prompts_of)
        found[pooling] = ActivationDataset(path)
    return found


@pytest.mark.parametrize("pooling", ["none", "last", "mean"])
def test_every_vector_is_traced_to_its_token(datasets, pooling):
    dataset = datasets[pooling]
    prompts = [each for n, lengths in enumerate(SHARDS) for each in prompts_of(lengths, n)]
    tokens = [
        (sample, token)
        for sample, prompt in enumerate(prompts)
        for token in range(0 if pooling == "none" else prompt.num_tokens - 1, prompt.num_tokens)
    ]
    assert len(tokens) == dataset.num_vectors
    places = dataset.locate(np.arange(len(tokens)))
    assert places.samples.tolist() == [sample for sample, _ in tokens]
    for number, (sample, token) in enumerate(tokens):
        prompt, origin = prompts[sample], dataset.trace(number)
        assert (origin.number, origin.sample) == (number, sample)
        assert origin.sample_id == prompt.sample_id
        source = prompt.sample_id.partition("#")[0]
        assert origin.name == SampleName(source, prompt.task_id, 0, "")
        example, role, row, col = prompt.cells[token].tolist()
        found = (origin.position, origin.token_id, origin.role)
        place = (origin.example, origin.row, origin.col)
        if pooling == "mean":
            assert found + place == (None,) * 6
            assert "mean" in str(origin)
            continue
        kind = ("input", "output", "text")[role]
        assert found == (token, prompt.token_ids[token], kind)
        assert places.token_ids[number] == prompt.token_ids[token]
        cell = ("test" if example < 0 else example, row, col)
        assert place == ((None,) * 3 if role < 0 else cell)
        assert str(origin).startswith(f"{prompt.sample_id}, token {token}, {kind}")
    with pytest.raises(IndexError, match="float64"):
        dataset.locate([1.5])
    for outside in (-1, len(tokens)):
        with pytest.raises(IndexError, match=r"expected 0\.\."):
            dataset.trace(outside)


SAMPLES: list[dict[str, Any]] = [
    {},
    {"source": "training/é2.json", "task": "00000000", "test": 0},
    {"sample": "training/é1.json#00000001/0"},
    {"test": 1},
]
TOKENS: list[dict[str, Any]] = [
    {},
    {"role": "text"},
    {"example": "test"},
    {"role": "output", "example": 1, "row": 2, "col": 1},
    {"row": 100},
]


@pytest.mark.parametrize("pooling", ["none", "last"])
def test_where_finds_the_vectors_whose_origin_matches(datasets, pooling):
    dataset = datasets[pooling]
    origins = [dataset.trace(number) for number in range(dataset.num_vectors)]
    for query in (a | b for a, b in product(SAMPLES, TOKENS)):
        expected = []
        for each in origins:
            fields = vars(each.name) | vars(each) | {"task": each.name.task_id}
            fields["sample"] = each.sample_id
            if all(fields[name] == value for name, value in query.items()):
                expected.append(each.number)
        assert dataset.where(**query).tolist() == expected, query


@pytest.mark.parametrize("pooling", ["none", "last"])
def test_tokens_with_unknown_cells_are_neither_cells_nor_text(tmp_path, pooling):
    def prompts(lengths, seed):
        known, *others = prompts_of(lengths, seed)
        return [known, *(replace(each, cells=np.full_like(each.cells, -2)) for each in others)]

    write_dataset(tmp_path, SHARDS, pooling, prompts_of=prompts)
    dataset = ActivationDataset(tmp_path)
    known = {0, 3, 5}
    for query in ({"role": "text"}, {"role": "input"}, {"row": 1}):
        with pytest.warns(UserWarning, match="cells of 5 samples, such as 'training/é0"):
            numbers = dataset.where(**query)
        assert {*dataset.locate(numbers).samples.tolist()} <= known
    assert len(dataset.where(task="00000001")) == (40 + 9 + 2 if pooling == "none" else 3)
    unknown = int(dataset.where(task="00000001")[0])
    origin = dataset.trace(unknown)
    assert (origin.role, origin.example, origin.row, origin.col) == (None,) * 4
    assert origin.position is not None
    assert "cells unknown" in str(origin)


def test_means_belong_to_samples_and_to_no_token(datasets):
    dataset = datasets["mean"]
    assert dataset.where(task="00000001").tolist() == [1, 4, 6]
    assert len(dataset.where()) == len(dataset) == 8
    with pytest.raises(ValueError, match="pooling mean"):
        dataset.where(role="text")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"role": "output "}, "role is 'output ', expected one of input, output, text"),
        ({"example": -1}, "example is -1"),
        ({"example": "first"}, "example is 'first'"),
        ({"row": 1.5}, "row is 1.5"),
        ({"col": "1"}, "col is '1'"),
        ({"example": True}, "example is True"),
        ({"role": "text", "row": 0}, "a token of text has no example, row or column"),
        ({"task": "0000001"}, "no task '0000001', but 3 others such as '00000001'"),
        ({"source": "training/0.json"}, "no source 'training/0.json'"),
    ],
)
def test_a_query_that_no_token_can_match_is_refused(datasets, query, message):
    with pytest.raises(ValueError, match=message):
        datasets["none"].where(**query)


KEY = "d4=3&colors=0482615937&order=2-0-1"


@pytest.mark.parametrize(
    ("sample_id", "task_id", "expected"),
    [
        (f"a/b.json#t/12?{KEY}", "t", ("a/b.json", 12, KEY)),
        ("b.jsonl#t/0", "t/0", ("b.jsonl", None, "")),
        ("b#1.json#t#2/0", "t#2", ("b#1.json", 0, "")),
        (f"b.jsonl#odd/0?{KEY}", f"odd/0?{KEY}", ("b.jsonl", None, "")),
    ],
)
def test_an_id_is_taken_apart(sample_id, task_id, expected):
    source, test, variant = expected
    assert SampleName.of(sample_id, task_id) == SampleName(source, task_id, test, variant)


@pytest.mark.parametrize("sample_id", ["", "a#u/0", "a#t/0?d4=9", "a#t/0\n"])
def test_an_id_of_another_task_is_refused(sample_id):
    with pytest.raises(ValueError, match="does not belong to the task 't'"):
        SampleName.of(sample_id, "t")


CHAT_ROLES = ("user", "assistant", "user")


def windows_of_chats(lengths, seed):
    """Return prompts, some of them chats, with every second token chosen and an offset of 5."""
    prompts = []
    for number, prompt in enumerate(make_prompts(lengths, seed)):
        chosen = np.arange(0, prompt.num_tokens, 2, dtype=np.int32)
        turns = (np.arange(prompt.num_tokens) % 4 - 1).astype(np.int16)
        prompt = replace(prompt, sample_id=f"a.json#{prompt.task_id}@5", offset=5)
        prompt = replace(prompt, positions=chosen, prepended_bos=True)
        prompts.append(replace(prompt, turns=turns, roles=CHAT_ROLES) if number % 2 else prompt)
    return prompts


def test_chosen_tokens_of_windows_and_chats(tmp_path):
    write_dataset(tmp_path, [[6, 40, 2], [9, 7]], "none", prompts_of=windows_of_chats)
    dataset = ActivationDataset(tmp_path)
    prompts = [*windows_of_chats([6, 40, 2], 0), *windows_of_chats([9, 7], 1)]
    expected = [(p, at) for p in prompts for at in p.positions.tolist()]
    assert dataset.num_vectors == len(expected)
    for number, (prompt, at) in enumerate(expected):
        origin = dataset.trace(number)
        assert origin.name == SampleName("a.json", prompt.task_id, None, "", 5)
        assert (origin.position, origin.token_id) == (at, prompt.token_ids[at])
        assert origin.document_position == (4 + at if at else None)
        turn = -1 if prompt.turns is None else prompt.turns[at]
        assert (origin.turn or -1, origin.chat_role) == (
            *(turn or -1, None if turn < 0 else CHAT_ROLES[turn]),
        )
        assert ("message" in str(origin)) == (turn >= 0)
    places = dataset.locate(np.arange(len(expected)))
    for role in ("user", "assistant"):
        wanted = [
            number
            for number, (prompt, at) in enumerate(expected)
            if prompt.roles and prompt.turns[at] >= 0 and CHAT_ROLES[prompt.turns[at]] == role
        ]
        assert dataset.where(role=role).tolist() == wanted
    assert dataset.where(position=[4, 6]).tolist() == [
        number for number, (_, at) in enumerate(expected) if at in (4, 6)
    ]
    some = places.token_ids[[3, 9]].tolist()
    assert (
        dataset.where(token=some).tolist()
        == np.flatnonzero(np.isin(places.token_ids, some)).tolist()
    )
    for same in ({*some}, np.array(some)):
        assert dataset.where(token=same).tolist() == dataset.where(token=some).tolist()
    assert dataset.where(token=[]).tolist() == []
    for field in ("token", "position"):
        wrongs: tuple[Any, ...] = (-1, [3, -1], "3", 1.5, True, [[3]])
        for wrong in wrongs:
            with pytest.raises(ValueError, match=f"{field} .*numbers from 0"):
                dataset.where(**{field: wrong})
    assert dataset.where(role="assistant", position=2, token=some[0]).size <= 2
    with pytest.raises(ValueError, match=r"assistants.*assistant, user"):
        dataset.where(role="assistants")
    with pytest.raises(ValueError, match="no example"):
        dataset.where(role="user", row=1)
