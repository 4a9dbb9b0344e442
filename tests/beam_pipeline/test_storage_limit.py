"""Limit of a run, model or storage, by number of workers."""

import pytest

from beam_pipeline.storage_limit import StorageLimit

GB = 10**9


@pytest.mark.parametrize("workers", [1, 10, 1000])
def test_connections_grow_with_the_workers_so_that_the_limit_does_not_change(workers: int):
    """Ten files give a worker 0.5 GB/s."""
    slow_model = StorageLimit(1000, 250 * GB, 10)
    assert slow_model.writing_seconds(workers) == pytest.approx(500 / workers)
    text = slow_model.describe(workers)
    assert text.startswith("the model; writing takes 50% of its time")
    assert "10 files" in text
    slow_bucket = StorageLimit(1000, 1000 * GB, 10)
    assert slow_bucket.useful_workers is None
    assert slow_bucket.describe(workers).startswith("writing; the model takes 50% of its time")


def test_a_rate_of_all_workers_is_balanced_by_a_number_of_them():
    limit = StorageLimit(1000, 250 * GB, 10, shared_rate=5 * GB)
    assert limit.useful_workers == 20
    assert limit.describe(10).startswith("the model; ")
    assert limit.describe(20).startswith("the model; writing takes 100% of its time, 5,000 MB/s")
    assert limit.describe(40).startswith("writing; the model takes 50% of its time, 5,000 MB/s")
    for workers in (10, 40):
        assert "balanced at 20 workers" in limit.describe(workers)
    assert limit.writing_seconds(40) == limit.writing_seconds(80) == 50


def test_connections_may_be_slower_than_the_model_until_they_fill_the_storage():
    limit = StorageLimit(100, 250 * GB, 10, shared_rate=5 * GB)
    assert limit.useful_workers == 10
    assert limit.writing_seconds(10) == limit.writing_seconds(20) == 50
    assert "more than 10 only wait" in limit.describe(2)


def test_a_run_takes_as_long_as_its_busiest_worker_or_the_storage():
    limit = StorageLimit(1000, 250 * GB, 10)
    assert limit.run_seconds(1 / 4) == 250
    assert StorageLimit(1000, 1000 * GB, 10).run_seconds(1 / 4) == 500
    assert StorageLimit(1000, 250 * GB, 10, shared_rate=GB // 2).run_seconds(1 / 4) == 500


def test_one_worker_may_be_too_fast():
    assert StorageLimit(1, 250 * GB, 1000, shared_rate=GB).useful_workers == 1
