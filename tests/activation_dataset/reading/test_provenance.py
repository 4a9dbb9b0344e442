from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from activation_dataset import ActivationDataset
from activation_dataset.format import Pooling
from activation_dataset.prompts import Prompt
from activation_dataset.reading.provenance import SampleName
from tests.activation_dataset.synthetic import make_prompts, write_dataset

SHARDS = [[3, 40, 1], [7, 9], [12, 2, 30]]


def prompts_of(lengths: list[int], seed: int) -> list[Prompt]:
    """Prompts of tasks that share ids, with text and cells of all kinds in any order."""
    rng = np.random.default_rng(seed)
    prompts = []
    for prompt in make_prompts(lengths, seed):
        length = prompt.num_tokens
        cells = rng.integers([-1, 0, 0, 0], [3, 2, 3, 4], (length, 4)).astype(np.int16)
        cells[rng.random(length) < 0.3] = -1
        prompts.append(replace(prompt, cells=cells))
    return prompts


def everything() -> list[tuple[int, Prompt]]:
    """The samples' numbers and prompts."""
    return list(
        enumerate(
            prompt for seed, lengths in enumerate(SHARDS) for prompt in prompts_of(lengths, seed)
        )
    )


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[Pooling, ActivationDataset]:
    found: dict[Pooling, ActivationDataset] = {}
    poolings: tuple[Pooling, ...] = ("none", "last", "mean")
    for pooling in poolings:
        path = tmp_path_factory.mktemp(pooling)
        write_dataset(path, SHARDS, pooling, prompts_of=prompts_of)
        found[pooling] = ActivationDataset(path)
    return found


def is_wanted(
    prompt: Prompt,
    cell: list[int],
    *,
    task: str | None = None,
    source: str | None = None,
    test: int | None = None,
    sample: str | None = None,
    role: str | None = None,
    example: Any = None,
    row: int | None = None,
    col: int | None = None,
) -> bool:
    """What a query means, token by token."""
    file, _, rest = prompt.sample_id.partition("#")
    kind = "text" if cell[1] < 0 else ("input", "output")[cell[1]]
    asks_for_cell = (example, row, col) != (None, None, None)
    return (
        task in (None, prompt.task_id)
        and source in (None, file)
        and test in (None, int(rest.split("/")[1]))
        and sample in (None, prompt.sample_id)
        and role in (None, kind)
        and not (asks_for_cell and kind == "text")
        and example in (None, "test" if cell[0] < 0 else cell[0])
        and row in (None, cell[2])
        and col in (None, cell[3])
    )


SAMPLES: list[dict[str, Any]] = [
    {},
    {"task": "00000001"},
    {"source": "training/é0.json"},
    {"source": "training/é2.json", "task": "00000000", "test": 0},
    {"sample": "training/é1.json#00000001/0"},
    {"test": 1},
    {"task": "00000001", "test": 9},
]
TOKENS: list[dict[str, Any]] = [
    {},
    {"role": "input"},
    {"role": "output"},
    {"role": "text"},
    {"example": 0},
    {"example": "test"},
    {"row": 0},
    {"col": 3},
    {"role": "output", "example": 1, "row": 2, "col": 1},
    {"row": 100},
]


@pytest.mark.parametrize("pooling", ["none", "last"])
@pytest.mark.parametrize("query", [a | b for a, b in product(SAMPLES, TOKENS)], ids=str)
def test_the_vectors_of_a_query_are_those_of_the_tokens_it_means(
    datasets: dict[Pooling, ActivationDataset], pooling: Pooling, query: dict[str, Any]
):
    expected = []
    number = 0
    for _, prompt in everything():
        cells = prompt.cells.tolist()
        for cell in cells if pooling == "none" else cells[-1:]:
            if is_wanted(prompt, cell, **query):
                expected.append(number)
            number += 1
    found = datasets[pooling].where(**query)
    assert found.dtype == np.int64
    assert found.tolist() == expected
    if not query:
        assert len(found) == datasets[pooling].num_vectors


def test_means_belong_to_samples_and_to_no_token(datasets: dict[Pooling, ActivationDataset]):
    dataset = datasets["mean"]
    assert dataset.where(task="00000001").tolist() == [1, 4, 6]
    assert len(dataset.where()) == len(dataset) == 8
    with pytest.raises(ValueError, match="pooling mean"):
        dataset.where(role="text")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"role": "output "}, "role is 'output ', expected one of input, output, text"),
        ({"row": -1}, "row is -1, expected a number from 0"),
        ({"example": -1}, "example is -1"),
        ({"example": "first"}, "example is 'first', expected a number from 0, or \"test\""),
        ({"role": "text", "row": 0}, "a token of text has no example, row or column"),
        (
            {"task": "0000001"},
            "no task '0000001', but 3 others such as '00000001'",
        ),
        ({"sample": "?"}, r"the dataset has no sample '\?', but \d+ others such as 'training/"),
        (
            {"source": "training/0.json"},
            r"no source .*training/.*errors/",
        ),
    ],
)
def test_a_query_that_no_token_can_meet_is_refused(
    datasets: dict[Pooling, ActivationDataset], query: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        datasets["none"].where(**query)


@pytest.mark.parametrize("pooling", ["none", "last", "mean"])
def test_every_vector_is_traced_to_its_token(
    datasets: dict[Pooling, ActivationDataset], pooling: Pooling
):
    dataset = datasets[pooling]
    number = 0
    for sample, prompt in everything():
        tokens = range(prompt.num_tokens)
        for token in tokens if pooling == "none" else tokens[-1:]:
            origin = dataset.trace(number)
            assert (origin.number, origin.sample) == (number, sample)
            assert origin.sample_id == prompt.sample_id
            source = prompt.sample_id.partition("#")[0]
            assert origin.name == SampleName(source, prompt.task_id, 0, "")
            example, role, row, col = prompt.cells[token].tolist()
            found = (origin.position, origin.token_id, origin.role)
            place = (origin.example, origin.row, origin.col)
            if pooling == "mean":
                assert found + place == (None,) * 6
                assert str(origin) == f"{prompt.sample_id}, mean over the prompt"
            elif role < 0:
                assert found == (token, prompt.token_ids[token], "text")
                assert place == (None,) * 3
                assert str(origin) == f"{prompt.sample_id}, token {token}, text"
            else:
                kind = ("input", "output")[role]
                assert found == (token, prompt.token_ids[token], kind)
                assert place == ("test" if example < 0 else example, row, col)
                pair = "the test" if example < 0 else f"example {example}"
                assert str(origin) == (
                    f"{prompt.sample_id}, token {token}, {kind} of {pair}, row {row}, column {col}"
                )
            number += 1
    assert number == dataset.num_vectors
    for outside in (-1, number):
        with pytest.raises(IndexError, match="not all in"):
            dataset.trace(outside)


def test_a_query_chooses_what_is_trained_on(datasets: dict[Pooling, ActivationDataset]):
    dataset = datasets["none"]
    wanted = dataset.where(role="output")
    batches = dataset.batches(10, 4, only=wanted, drop_last=False)
    found = np.concatenate([batch.numbers for batch in batches])
    assert sorted(found.tolist()) == wanted.tolist()


# Ids of samples.

KEY = "d4=3&colors=0482615937&order=2-0-1"


@pytest.mark.parametrize(
    ("sample_id", "task_id", "expected"),
    [
        ("training.json#007bbfb7/0", "007bbfb7", ("training.json", 0, "")),
        (f"a/b.json#t/12?{KEY}", "t", ("a/b.json", 12, KEY)),
        ("texts.jsonl#line-000003", "line-000003", ("texts.jsonl", None, "")),
        ("b.jsonl#t/0", "t/0", ("b.jsonl", None, "")),
        ("b#1.json#t#2/0", "t#2", ("b#1.json", 0, "")),
        (f"b.jsonl#odd/0?{KEY}", f"odd/0?{KEY}", ("b.jsonl", None, "")),
        ("what?.json#why?/3", "why?", ("what?.json", 3, "")),
    ],
)
def test_an_id_is_taken_apart(sample_id: str, task_id: str, expected: tuple[str, int | None, str]):
    source, test, variant = expected
    assert SampleName.of(sample_id, task_id) == SampleName(source, task_id, test, variant)


@pytest.mark.parametrize("sample_id", ["", "t", "a#u/0", "a#t/", "a#t/0?d4=9", "a#t/0\n", "at/0"])
def test_an_id_of_another_task_is_refused(sample_id: str):
    with pytest.raises(ValueError, match="is not of the task 't'"):
        SampleName.of(sample_id, "t")
