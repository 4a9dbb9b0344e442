import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.augment import (
    Augmentation,
    AugmentationError,
    AugmentationPlan,
    apply,
    augment,
    original_cell,
    parse_key,
    split_sample_id,
)
from corpus.prompt import render
from corpus.task import Grid, Pair, RejectedTask, Task
from corpus.template import load_template

DIGITS = load_template("digits")


def grids(colors: int = 10) -> st.SearchStrategy[Grid]:
    def of_shape(shape: tuple[int, int]) -> st.SearchStrategy[Grid]:
        row = st.tuples(*[st.integers(0, colors - 1)] * shape[1])
        return st.tuples(*[row] * shape[0])

    return st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(of_shape)


def tasks(colors: int = 10) -> st.SearchStrategy[Task]:
    pairs = st.builds(Pair, grids(colors), grids(colors))
    tests = st.builds(Pair, grids(colors), st.none() | grids(colors))
    return st.builds(
        Task,
        st.just("id"),
        st.just("folder/file.json"),
        st.lists(pairs, min_size=1, max_size=12).map(tuple),
        st.lists(tests, min_size=1, max_size=2).map(tuple),
    )


@st.composite
def tasks_and_augmentations(draw: Any) -> tuple[Task, Augmentation]:
    task = draw(tasks())
    return task, Augmentation(
        draw(st.integers(0, 7)),
        tuple(draw(st.permutations(range(10)))),
        tuple(draw(st.permutations(range(len(task.train))))),
    )


def small_task(*train: tuple[Grid, Grid], test: Sequence[Grid] = (((1, 2), (3, 4)),)) -> Task:
    pairs = tuple(Pair(*grids) for grids in train) or (Pair(((1, 2, 0),), ((2,), (1,))),) * 2
    return Task("t", "a.json", pairs, tuple(Pair(grid, None) for grid in test))


def variants(task: Task, count: int, seed: int = 0, keep_background: bool = False) -> list[Task]:
    found = list(augment(task, AugmentationPlan(count, seed, keep_background)))
    accepted = [item for item in found if isinstance(item, Task)]
    assert accepted == found
    return accepted


def prompts(found: list[Task], test_index: int = 0) -> set[str]:
    return {render(DIGITS, variant, test_index).text for variant in found}


@given(tasks_and_augmentations())
def test_a_sample_id_leads_back_to_sample_and_augmentation(given_both: tuple[Task, Augmentation]):
    task, augmentation = given_both
    assert parse_key(augmentation.key) == augmentation
    for index in range(len(task.test)):
        sample_id = apply(task, augmentation).sample_id(index)
        assert split_sample_id(sample_id) == (task.sample_id(index), augmentation)
        assert split_sample_id(task.sample_id(index)) == (task.sample_id(index), None)
    assert split_sample_id("what?/a.json#which?/12") == ("what?/a.json#which?/12", None)


@given(tasks_and_augmentations())
def test_a_cell_of_a_variant_is_found_in_its_task(given_both: tuple[Task, Augmentation]):
    task, augmentation = given_both
    variant = apply(task, augmentation)
    for number, after in zip(augmentation.order, variant.train, strict=True):
        before, shape = task.train[number].input, (len(after.input), len(after.input[0]))
        assert sorted(shape) == sorted((len(before), len(before[0])))
        for row, column in itertools.product(*map(range, shape)):
            found = original_cell(augmentation, shape, (row, column))
            assert augmentation.colors[before[found[0]][found[1]]] == after.input[row][column]


def test_grids_are_transposed_then_turned_anticlockwise_then_colored():
    grid = ((1, 2, 3), (4, 5, 6))
    task = small_task((grid, grid))
    for d4, colors in itertools.product(range(8), (tuple(range(10)), (*range(1, 10), 0))):
        array = np.array(grid)
        turned = np.rot90(array.T if d4 >= 4 else array, d4 % 4)
        (pair,) = apply(task, Augmentation(d4, colors, (0,))).train
        assert pair.input == pair.output == tuple(map(tuple, np.array(colors)[turned].tolist()))


@pytest.mark.parametrize(
    "key",
    ["", "d4=8&colors=0123456789&order=0", "d4=0&colors=0123456788&order=0", "d4=0&order=0"],
)
def test_a_key_that_is_none_is_refused(key: str):
    with pytest.raises(AugmentationError, match="colors and order are permutations"):
        split_sample_id(f"a.json#t/0?{key}")


def test_an_augmentation_of_another_task_is_refused():
    three = Augmentation(0, tuple(range(10)), (0, 1, 2))
    with pytest.raises(AugmentationError, match=r"a\.json, task t: 2 training pairs.* 3"):
        apply(small_task(), three)
    with pytest.raises(AugmentationError, match="document"):
        split_sample_id("a.jsonl#document")


@settings(deadline=None, max_examples=25)
@given(tasks(colors=3), st.integers(1, 60), st.integers(0, 3), st.booleans())
def test_no_two_variants_show_the_same_prompt(
    task: Task, count: int, seed: int, keep_background: bool
):
    plan = AugmentationPlan(count, seed, keep_background)
    found = [item for item in augment(task, plan) if isinstance(item, Task)]
    assert found[0] == task
    assert 1 <= len(found) <= count
    for index in range(len(task.test)):
        assert len(prompts(found, index)) == len(found)
    for variant in found[1:]:
        augmentation = parse_key(variant.augmentation)
        assert apply(task, augmentation) == variant
        assert augmentation.colors[0] == 0 or not keep_background


def test_variants_follow_from_seed_and_task_alone_and_more_go_on_after_fewer():
    task = small_task()
    assert variants(task, 10) == variants(task, 40)[:10]
    assert variants(task, 40)[1:] != variants(task, 40, seed=1)[1:]
    other = Task("u", "a.json", task.train, task.test)
    keys = [[v.augmentation for v in variants(each, 40)] for each in (task, other)]
    assert keys[0] != keys[1]


def test_the_variants_of_a_seed_stay_the_same_in_every_version():
    assert [v.augmentation for v in variants(small_task(), 3)[1:]] == [
        "d4=7&colors=0219483576&order=1-0",
        "d4=2&colors=4793812650&order=0-1",
    ]


def test_a_task_with_few_variants_gives_all_and_says_so():
    # Two colors, one of which is kept: 9 renamings x 2 orders x 4 distinct symmetries of the grid.
    grid = ((0, 1), (0, 0))
    task = small_task((grid, ((0,),)), (grid, ((1,),)), test=[grid])
    *found, rejected = augment(task, AugmentationPlan(73, 0, keep_background=True))
    looks = {
        render(DIGITS, apply(task, Augmentation(d4, (0, *colors), order)), 0).text
        for d4 in range(8)
        for order in itertools.permutations(range(2))
        for colors in [(c, *(x for x in range(1, 10) if x != c)) for c in range(1, 10)]
    }
    assert len(looks) == 72
    assert prompts([item for item in found if isinstance(item, Task)]) == looks
    assert isinstance(rejected, RejectedTask)
    assert (rejected.task_id, rejected.reason) == ("t", "too_few_variants")
    assert "--augment asks for 73 variants, but only 72" in rejected.detail
