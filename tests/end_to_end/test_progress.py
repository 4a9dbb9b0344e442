"""Progress of a run: counters on any runner, and calls to listeners."""

from collections import Counter
from pathlib import Path

import apache_beam as beam
import pytest

from beam_pipeline.job import open_job
from beam_pipeline.options import parse_flags
from beam_pipeline.pipeline import build
from tests.end_to_end.job import flags_of, metadata_of, run
from transforms.extraction_progress import WorkDone, listening
from transforms.output_folder import OutputFolder

FLAGS = ("--layers_to_extract", "0-1", "--samples_per_shard", "2", "--batch_size", "1")


def counters_of(model: Path, tasks: Path, out: Path) -> dict[str, int]:
    """Return the counters of a run by namespace and name, summed over the steps."""
    config, options = parse_flags(flags_of(model, tasks, out, FLAGS))
    pipeline, job = beam.Pipeline(options=options), open_job(config)
    build(pipeline, job, job.describe(), OutputFolder.claim(config.output_dir))
    result = pipeline.run()
    result.wait_until_finish()
    counters = Counter[str]()
    for found in result.metrics().query()["counters"]:
        metric = found.key.metric
        counters[f"{metric.namespace}.{metric.name}"] += found.committed
    return counters


@pytest.fixture(scope="module")
def counted(checkpoint: Path, short_tasks: Path, tmp_path_factory: pytest.TempPathFactory):
    """Return the counters of a run, the calls to a listener, and the folder of the dataset."""
    out = tmp_path_factory.mktemp("progress") / "out"
    heard: list[WorkDone] = []
    totals: set[tuple[int, int]] = set()

    def listen(plan, done):
        totals.add((plan.samples, plan.tokens))
        heard.append(done)

    with listening(listen):
        counters = counters_of(checkpoint, short_tasks, out)
    return counters, heard, totals, out


def test_the_counters_are_those_of_the_dataset(counted):
    counters, heard, totals, out = counted
    metadata = metadata_of(out)
    files = [entry for shard in metadata.shards for entry in shard.files.values()]
    assert counters["extract.samples"] == metadata.total_samples
    assert counters["extract.tokens"] == metadata.total_tokens
    assert counters["extract.slots"] >= metadata.total_tokens
    assert 1 < counters["extract.steps"] <= metadata.total_samples
    assert counters["write.bytes"] == sum(entry.bytes for entry in files)
    # A listener is called for every shard and step.
    assert totals == {(counters["extract.samples"], counters["extract.tokens"])}
    assert heard.count(WorkDone()) == len(metadata.shards)
    steps = [done for done in heard if done.slots]
    assert len(steps) == counters["extract.steps"]
    assert sum(done.slots for done in steps) == counters["extract.slots"]


def test_work_of_an_earlier_run_counts_as_done(counted, checkpoint, short_tasks):
    out = counted[3]
    heard: list[WorkDone] = []
    with listening(lambda plan, done: heard.append(done)):
        run(checkpoint, short_tasks, out, *FLAGS)
    assert sum(done.tokens for done in heard) == metadata_of(out).total_tokens
    assert not any(done.slots for done in heard)
