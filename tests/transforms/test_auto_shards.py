"""Choice of shards for a number of workers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.prompts import Prompt
from activation_dataset.record import RecordKind
from tests.activation_dataset.synthetic import make_prompts, text_prompt
from tests.transforms.merges import any_merge, combined
from transforms import auto_shards
from transforms.assign_shards import PlanShards, ShardPlan
from transforms.auto_shards import LARGEST_FILE, LEAST_TOKENS, AutoShards, number_of_shards
from transforms.measure_output import record_bytes

POOLED, EVERY_TOKEN = RecordKind("last", "float32", 8), RecordKind("none", "float32", 64)
A_LOT = 10**12


def prompts_of(lengths: list[int]) -> list[Prompt]:
    return [
        text_prompt(f"{number}", str(number), np.arange(length, dtype=np.int32))
        for number, length in enumerate(lengths)
    ]


def samples_of(plan: ShardPlan, prompts: list[Prompt]) -> list[list[Prompt]]:
    """Return the prompts of each shard."""
    found: list[list[Prompt]] = [[] for _ in range(plan.num_shards)]
    for prompt in prompts:
        found[plan.shard_of(prompt.sample_id)].append(prompt)
    return found


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(1, 60))
def test_shards_differ_by_a_sample_and_cover_all(samples: int, workers: int):
    starts = AutoShards(workers, ()).starts(A_LOT, np.ones(samples, np.uint32))
    counts = np.diff([*starts, samples])
    assert counts.sum() == samples
    assert len(counts) == min(20 * workers, samples)
    assert not samples or (starts[0] == 0 and counts.min() >= 1 and counts.max() - counts.min() < 2)


@pytest.mark.parametrize(
    ("tokens_of_a_worker", "shards"),
    [(1, 8), (8 * LEAST_TOKENS, 8), (12 * LEAST_TOKENS, 12), (10**9, 20)],
)
@pytest.mark.parametrize("workers", [1, 7, 64])
def test_each_worker_gets_the_same_number_of_shards(
    tokens_of_a_worker: int, shards: int, workers: int
):
    found = number_of_shards(10**9, tokens_of_a_worker * workers, 1, workers)
    assert found == shards * workers


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.integers(1, 2**20), st.integers(1, 2**32 - 1)), max_size=200),
    st.integers(1, 5),
)
def test_no_file_is_too_large_unless_one_sample_is(sizes: list[int], workers: int):
    starts = AutoShards(workers, ()).starts(1, np.array(sizes, np.uint32))
    shards = [part.tolist() for part in np.split(np.array(sizes, np.int64), starts[1:])]
    assert [size for shard in shards for size in shard] == sizes
    assert all(sum(shard) <= LARGEST_FILE or len(shard) == 1 for shard in shards)


def test_large_files_make_more_rounds_of_shards():
    sizes = np.full(30_000, 2**22, np.uint32)  # 117 GiB
    starts = AutoShards(4, ()).starts(1, sizes)
    assert len(starts) % 4 == 0
    assert 157 <= len(starts) <= 160
    assert np.diff([*starts, len(sizes)]).max() * 2**22 <= LARGEST_FILE


@settings(max_examples=50, deadline=None)
@given(st.data(), st.lists(st.integers(1, 40), max_size=30), st.integers(1, 3))
def test_the_plan_is_that_of_the_samples_whatever_the_order(data: Any, lengths, workers: int):
    rule, prompts = AutoShards(workers, (POOLED,)), prompts_of(lengths)
    expected = combined(PlanShards(rule), prompts)
    found = data.draw(any_merge(PlanShards(rule), prompts))
    assert found.digest == expected.digest == combined(PlanShards(3), prompts).digest
    assert np.array_equal(found.first_ranks, expected.first_ranks)
    counts = [len(shard) for shard in samples_of(found, prompts)]
    assert sum(counts) == len(prompts)
    assert len(counts) == min(8 * workers, len(prompts))
    assert not counts or max(counts) - min(counts) <= 1


def test_the_limit_is_that_of_the_largest_file(monkeypatch: pytest.MonkeyPatch):
    """The largest file is the prompts for one vector of 8 elements, and a layer otherwise."""
    monkeypatch.setattr(auto_shards, "LARGEST_FILE", 50_000)
    monkeypatch.setattr(auto_shards, "MEAN_FILE", 40_000)
    prompts = make_prompts([100] * 300)
    shards = []
    for kinds in ((POOLED,), (POOLED, EVERY_TOKEN)):
        plan = combined(PlanShards(AutoShards(1, kinds)), prompts)
        files = [
            max(sum(record_bytes(each, kind) for each in shard) for kind in (*kinds, None))
            for shard in samples_of(plan, prompts)
        ]
        assert max(files) <= 50_000
        shards.append(plan.num_shards)
    assert 8 <= shards[0] < shards[1]
