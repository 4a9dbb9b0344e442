"""Tracing of a vector to its token, its cell, and its task in a task file."""

import shutil
from pathlib import Path

import pytest

from activation_dataset import ActivationDataset
from corpus.augment import apply, original_cell, split_sample_id
from corpus.parse import parse_tasks
from corpus.task import Grid, Task
from qwen.source import open_model
from tests.end_to_end.job import problems_of, run


@pytest.fixture(scope="module")
def files(example_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest task, and a task with several test inputs."""
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("fall.json", "mirror.json", "turn.json"):
        shutil.copy(example_tasks / name, folder)
    return folder


@pytest.fixture(scope="module")
def dataset(files: Path, tmp_path_factory: pytest.TempPathFactory) -> ActivationDataset:
    out = tmp_path_factory.mktemp("out")
    run(
        *("random:tiny", files, out),
        *("--layers_to_extract", "0", "--pooling", "none", "--storage_dtype", "bfloat16"),
        *("--augment", "3", "--samples_per_shard", "4"),
    )
    assert problems_of(out) == []
    return ActivationDataset(out)


@pytest.fixture(scope="module")
def tasks(files: Path) -> dict[tuple[str, str], Task]:
    """Return the tasks of the files, by source and id."""
    found = {}
    for path in sorted(files.glob("*.json")):
        with open(path, "rb") as stream:
            for task in parse_tasks(stream, path.name):
                assert isinstance(task, Task)
                found[task.source, task.task_id] = task
    return found


def grids_of(task: Task, test: int) -> dict[tuple[int | str, str], Grid]:
    """Grids that a prompt shows."""
    grids: dict[tuple[int | str, str], Grid] = {("test", "input"): task.test[test].input}
    for number, pair in enumerate(task.train):
        assert pair.output is not None
        grids |= {(number, "input"): pair.input, (number, "output"): pair.output}
    return grids


def test_every_cell_of_every_variant_is_one_vector_and_leads_back_to_its_task(
    dataset: ActivationDataset, tasks: dict[tuple[str, str], Task]
):
    digits = [open_model("random:tiny").tokenizer().encode(str(n)) for n in range(10)]
    cells = variants = 0
    for sample in range(len(dataset)):
        sample_id = dataset.sample_id(sample)
        vectors = dataset.where(sample=sample_id, role="input").tolist()
        vectors += dataset.where(sample=sample_id, role="output").tolist()
        origins = [dataset.trace(number) for number in vectors]
        name = origins[0].name
        task = tasks[name.source, name.task_id]
        assert name.test is not None
        _, augmentation = split_sample_id(sample_id)
        shown = grids_of(apply(task, augmentation) if augmentation else task, name.test)
        assert len(vectors) == sum(len(grid) * len(grid[0]) for grid in shown.values())
        there = grids_of(task, name.test)
        for origin in origins:
            assert origin.example is not None
            assert origin.role is not None
            assert origin.row is not None
            assert origin.col is not None
            grid = shown[origin.example, origin.role]
            assert [origin.token_id] == digits[grid[origin.row][origin.col]]
            if augmentation:
                shape = len(grid), len(grid[0])
                row, col = original_cell(augmentation, shape, (origin.row, origin.col))
                example = origin.example
                if isinstance(example, int):
                    example = augmentation.order[example]
                color = augmentation.colors[there[example, origin.role][row][col]]
                assert [origin.token_id] == digits[color]
        corner = dataset.where(sample=sample_id, role="input", example=0, row=0, col=0)
        (first,) = corner.tolist()
        assert first in vectors
        cells += len(vectors)
        variants += augmentation is not None
    assert variants == 2 / 3 * len(dataset)
    assert len(dataset.where(role="text")) + cells == dataset.num_vectors
