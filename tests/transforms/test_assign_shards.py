import apache_beam as beam
import numpy as np
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.prompts import Prompt
from tests.activation_dataset.synthetic import make_prompts, text_prompt
from tests.transforms.merges import any_merge, combined
from transforms.assign_shards import (
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


def test_the_plan_does_not_change_from_version_to_version():
    """Resuming a run and comparing two datasets both depend on the rank."""
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


def test_every_shard_but_the_last_is_full():
    prompts = {each.sample_id: each for each in make_prompts([*range(1, 11)])}

    def check(gathered):
        found = dict(gathered)
        assert [len(found[shard]) for shard in range(4)] == [3, 3, 3, 1]
        for each in [prompt for ours in found.values() for prompt in ours]:
            given = prompts.pop(each.sample_id)
            assert each.task_id == given.task_id
            np.testing.assert_array_equal(each.token_ids, given.token_ids)
            np.testing.assert_array_equal(each.cells, given.cells)

    with beam.Pipeline("FnApiRunner") as pipeline:
        found = pipeline | beam.Create(prompts.values())
        plan = found | beam.CombineGlobally(PlanShards(3))
        assert_that(found | AssignShards(plan), check)
