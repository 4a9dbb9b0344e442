import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.prompts import Prompt
from tests.activation_dataset.synthetic import text_prompt
from tests.transforms.merges import any_merge, combined
from transforms.assign_shards import (
    FINGERPRINT,
    AssignShards,
    PlanShards,
    ShardPlan,
    fingerprint,
    plan_shards,
    rank,
)


def prompt(number: int, *tokens: int) -> Prompt:
    return text_prompt(f"a.json#{number}/0", str(number), np.array(tokens or (number,), np.int32))


def plan_of(prompts: list[Prompt], samples_per_shard: int) -> ShardPlan:
    return plan_shards(np.concatenate([fingerprint(each) for each in prompts]), samples_per_shard)


@given(st.integers(1, 200), st.integers(1, 60))
def test_every_shard_but_the_last_is_full(samples: int, samples_per_shard: int):
    prompts = [prompt(number) for number in range(samples)]
    plan = plan_of(prompts, samples_per_shard)
    sizes = [0] * plan.num_shards
    for each in prompts:
        sizes[plan.shard_of(each.sample_id)] += 1
    full, rest = divmod(samples, samples_per_shard)
    assert sizes == [samples_per_shard] * full + [rest] * (rest > 0)
    assert (plan.samples, plan.tokens) == (samples, samples)


def test_nothing_to_plan_is_no_shard():
    plan = plan_shards(np.empty(0, FINGERPRINT), 512)
    assert (plan.num_shards, plan.samples, plan.tokens) == (0, 0, 0)


def test_the_plan_does_not_change_from_version_to_version():
    """Resuming a run, and comparing two datasets, both rest on it."""
    assert hex(rank("a.json#0/0")) == "0xfa3c19e779514a3d"  # printf 'a.json#0/0' | b2sum -l 64
    plan = plan_of([prompt(number, number, 7) for number in range(5)], 2)
    assert [plan.shard_of(prompt(number).sample_id) for number in range(5)] == [2, 0, 1, 1, 0]
    assert plan.digest == "a8b4ed85945b7cd50b1c3bb06c450c83ace59b064f7f5592b6356401a2bc7dbf"


@settings(max_examples=50)
@given(st.data(), st.integers(0, 20))
def test_the_plan_is_independent_of_arrival_and_of_merging(data, samples: int):
    prompts = [prompt(number, *range(number + 1)) for number in range(samples)]
    expected = combined(PlanShards(3), prompts)
    found = data.draw(any_merge(PlanShards(3), prompts))
    assert found.digest == expected.digest
    assert np.array_equal(found.first_ranks, expected.first_ranks)
    assert found.tokens == sum(each.num_tokens for each in prompts)


@pytest.mark.parametrize(
    "changed",
    [
        [prompt(0, 1, 2), prompt(1, 3)],
        [prompt(0, 1, 2), prompt(1, 3, 4), prompt(2, 5)],
        [prompt(0, 1, 2), prompt(1, 3, 5)],
        [prompt(0, 1, 2), prompt(2, 3, 4)],
        [prompt(0, 3, 4), prompt(1, 1, 2)],
    ],
    ids=["fewer tokens", "one more sample", "another token", "another key", "tokens exchanged"],
)
def test_the_digest_tells_other_samples(changed: list[Prompt]):
    before = plan_of([prompt(0, 1, 2), prompt(1, 3, 4)], 8)
    assert plan_of(changed, 8).digest != before.digest


def test_each_shard_gathers_its_prompts():
    prompts = [prompt(number) for number in range(10)]

    def check(gathered):
        found = {shard: {each.sample_id for each in ours} for shard, ours in gathered}
        assert [len(found[shard]) for shard in range(4)] == [3, 3, 3, 1]
        assert set.union(*found.values()) == {each.sample_id for each in prompts}

    with beam.Pipeline("FnApiRunner") as pipeline:
        found = pipeline | beam.Create(prompts)
        plan = found | beam.CombineGlobally(PlanShards(3))
        assert_that(found | AssignShards(plan), check)
