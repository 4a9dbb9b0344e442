from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor

from beam_pipeline.options import parse_flags
from beam_pipeline.pipeline import build, prepare
from tests.conftest import COMPILED
from transforms.output_folder import OutputFolder


class Steps(PipelineVisitor):
    """The steps of a graph by label, and which step made each collection."""

    def __init__(self) -> None:
        self.by_label: dict[str, AppliedPTransform] = {}

    def visit_transform(self, node: AppliedPTransform) -> None:
        self.by_label[node.full_label] = node

    def producers(self, label: str) -> set[str]:
        return {value.producer.full_label for value in self.by_label[label].inputs}


@pytest.fixture(scope="module")
def pipeline(
    checkpoint: Path, short_tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> beam.Pipeline:
    out = tmp_path_factory.mktemp("pipeline") / "out"
    argv = [
        *("--model_path", str(checkpoint)),
        *("--tasks_file", str(short_tasks)),
        *("--output_dir", str(out)),
        *("--compile_cache", COMPILED.name),
        *("--layers_to_extract", "0-1"),
        *("--samples_per_shard", "2"),
        *("--batch_size", "1"),
    ]
    config, options = parse_flags(argv)
    made = beam.Pipeline(options=options)
    build(made, prepare(config), OutputFolder.claim(str(out)))
    return made


@pytest.fixture(scope="module")
def steps(pipeline: beam.Pipeline) -> Steps:
    steps = Steps()
    pipeline.visit(steps)
    return steps


def test_the_steps_are_named_for_the_person_who_watches_the_job(steps: Steps):
    top = {label.partition("/")[0] for label in steps.by_label}
    expected = {"ReadTasks", "Tokenize", "PlanShards", "CommitRun", "AssignShards", "Extract"}
    assert expected | {"layer_0", "layer_1", "CombineMetadata"} <= top
    assert {"layer_0/Write", "layer_1/Write"} <= steps.by_label.keys()


def test_activations_go_from_extraction_to_writing_without_a_shuffle(steps: Steps):
    for layer in (0, 1):
        (extraction,) = steps.producers(f"layer_{layer}/Write")
        assert extraction.startswith("Extract/")


def test_nothing_behind_the_extraction_is_shuffled_but_manifests(steps: Steps):
    after = [
        label
        for label in steps.by_label
        if label.endswith("/GroupByKey") and label.startswith(("Extract", "layer_", "prompts"))
    ]
    assert after == []


def test_a_run_counts_what_it_did(pipeline: beam.Pipeline):
    result = pipeline.run()
    result.wait_until_finish()
    found = {
        (counter.key.metric.namespace, counter.key.metric.name): counter.committed
        for counter in result.metrics().query(MetricsFilter())["counters"]
    }
    assert found["extract", "samples"] == 5
    assert found["extract", "tokens"] == 1173
    assert found["write", "bytes"] > 0
