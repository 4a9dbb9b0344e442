from pathlib import Path

from scripts import make_example_tasks


def test_the_script_makes_the_example_tasks(example_tasks: Path, tmp_path: Path):
    make_example_tasks.main(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in example_tasks.iterdir()}
