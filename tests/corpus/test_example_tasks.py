from pathlib import Path

from corpus.parse import parse_tasks
from corpus.task import Task
from scripts import make_example_tasks


def read_tasks(folder: Path) -> list[Task]:
    """The tasks of all files in a folder, none of them rejected."""
    tasks = []
    for path in sorted(folder.glob("*.json")):
        with path.open("rb") as file:
            for item in parse_tasks(file, path.name):
                assert isinstance(item, Task), item
                tasks.append(item)
    return tasks


def test_the_script_makes_the_example_tasks(example_tasks: Path, tmp_path: Path):
    make_example_tasks.main(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in example_tasks.iterdir()}


def test_the_example_tasks_come_in_many_sizes_and_two_layouts(example_tasks: Path):
    tasks = read_tasks(example_tasks)
    assert len(tasks) == len({task.task_id for task in tasks}) == 14
    sides = [max(len(p.input), len(p.input[0])) for task in tasks for p in task.train]
    assert (min(sides), max(sides)) == (3, 20)
    assert {task.source for task in tasks} >= {"mirror.json", "combined_challenges.json"}
    assert {task.test[0].output is None for task in tasks} == {True, False}
