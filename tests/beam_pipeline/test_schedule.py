"""Waiting workers at the end of a run."""

import pytest

from beam_pipeline.schedule import Schedule


@pytest.mark.parametrize(
    ("costs", "workers", "ends"),
    [
        ([1] * 8, 4, (2, 2, 2, 2)),
        ([1] * 9, 4, (2, 2, 2, 3)),
        ([1, 1], 4, (0, 0, 1, 1)),
        ([5, 1, 1, 1], 2, (3, 5)),
        ([], 2, (0, 0)),
    ],
)
def test_a_free_worker_takes_the_next_shard(costs: list[int], workers: int, ends: tuple[int, ...]):
    assert Schedule.of(costs, workers).ends == ends


def test_the_time_that_workers_wait():
    schedule = Schedule((2.0, 2.0, 3.0, 4.0))
    assert schedule.waiting == 3
    assert schedule.longest_wait == 0.5
    assert schedule.idle == 5 / 16
    nothing = Schedule.of([], 2)
    assert (nothing.waiting, nothing.longest_wait, nothing.idle) == (0, 0, 0)
