"""Graph of the job: stable step names, and no shuffle of activations."""

from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor

from beam_pipeline.job import open_job
from beam_pipeline.options import parse_flags
from beam_pipeline.pipeline import build
from transforms.output_folder import OutputFolder


class Steps(PipelineVisitor):
    """Steps of a graph by label, and the step that made each collection."""

    def __init__(self) -> None:
        self.by_label: dict[str, AppliedPTransform] = {}

    def visit_transform(self, node: AppliedPTransform) -> None:
        self.by_label[node.full_label] = node

    def producers(self, label: str) -> set[str]:
        return {value.producer.full_label for value in self.by_label[label].inputs}


@pytest.fixture(scope="module")
def steps(checkpoint: Path, short_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    argv = ["--model_path", str(checkpoint), "--tasks_file", str(short_tasks)]
    config, options = parse_flags([*argv, "--layers_to_extract", "0-1"])
    pipeline = beam.Pipeline(options=options)
    job = open_job(config)
    folder = OutputFolder.claim(str(tmp_path_factory.mktemp("pipeline") / "out"))
    build(pipeline, job, job.describe(), folder)
    steps = Steps()
    pipeline.visit(steps)
    return steps


def test_the_steps_are_named_for_the_person_who_watches_the_job(steps: Steps):
    top = {label.partition("/")[0] for label in steps.by_label}
    expected = {"ReadTasks", "Tokenize", "PlanShards", "CommitRun", "AssignShards", "Extract"}
    assert expected | {"layer_0", "layer_1", "prompts", "CombineMetadata"} <= top


def test_activations_go_from_extraction_to_writing_without_a_shuffle(steps: Steps):
    for name in ("layer_0", "layer_1", "prompts"):
        (extraction,) = steps.producers(f"{name}/Write")
        assert extraction.startswith("Extract/")
    shuffles = [label for label in steps.by_label if label.endswith("/GroupByKey")]
    assert shuffles
    assert not [each for each in shuffles if each.startswith(("Extract", "layer_", "prompts"))]
