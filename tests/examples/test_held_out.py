"""Tests that a split never separates the samples of one puzzle, for all kinds of input files."""

import io
import json
import random

import numpy as np
import pytest

from activation_dataset import ActivationDataset
from activation_dataset.prompts import TEST_PAIR, Prompt
from corpus.augment import AugmentationPlan, augment
from corpus.parse import parse_tasks
from corpus.task import Document, Task
from examples.held_out import split
from examples.puzzles import puzzles
from tests.activation_dataset import synthetic
from tests.activation_dataset.synthetic import write_dataset


def prompts_of_item(item):
    """Yield the prompts of a task or document, with tokens for the cells of grids only."""
    if isinstance(item, Document):
        tokens = np.frombuffer((item.text or "").encode(), np.uint8).astype(np.int32)
        nothing = np.full((len(tokens), 4), -1, np.int16)
        yield Prompt(item.sample_id, item.document_id, tokens, nothing)
        return
    assert isinstance(item, Task)
    for test, pair in enumerate(item.test):
        shown = [(example, pair.input, pair.output) for example, pair in enumerate(item.train)]
        cells = [
            (example, role, row, column, color)
            for example, *grids in [*shown, (TEST_PAIR, pair.input, None)]
            for role, grid in enumerate(grids)
            for row, colors in enumerate(grid or ())
            for column, color in enumerate(colors)
        ]
        table = np.array(cells)
        tokens = (15 + table[:, 4]).astype(np.int32)
        yield Prompt(item.sample_id(test), item.task_id, tokens, table[:, :4].astype(np.int16))


def dataset_of(folder, files, variants=1):
    """Write a dataset from files, given by name as JSON values or as text."""
    plan = AugmentationPlan(variants, seed=0, keep_background=False)
    prompts = []
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        for item in parse_tasks(io.BytesIO(text.encode()), name):
            made = augment(item, plan) if isinstance(item, Task) else [item]
            prompts += [prompt for each in made for prompt in prompts_of_item(each)]
    prompts.sort(key=lambda prompt: prompt.sample_id)
    halves = [prompts[::2], prompts[1::2]]
    write_dataset(
        folder,
        [[prompt.num_tokens for prompt in half] for half in halves],
        prompts_of=lambda _, shard: halves[shard],
    )
    return ActivationDataset(folder)


def puzzle_by_task(dataset):
    """Return the name of the puzzle of each file and task."""
    found: dict[str, str] = {}
    for sample, puzzle in enumerate(puzzles(dataset)):
        name = dataset.sample_id(sample).partition("/")[0].partition("?")[0]
        assert found.setdefault(name, puzzle) == puzzle
    return found


def check_sides(dataset, puzzle_of_task):
    """Check for ten seeds that no puzzle is on both sides of the split."""
    for seed in range(10):
        parts = split(dataset, seed)
        sides = [
            {
                puzzle_of_task(dataset.task_id(each))
                for each in dataset.locate(side).samples.tolist()
            }
            for side in (parts.train, parts.held_out)
        ]
        assert all(sides)
        assert sides[0].isdisjoint(sides[1])


def random_task(seed, pairs=4):
    rng = np.random.default_rng(seed)
    made = [
        {key: rng.integers(0, 10, (5, 4)).tolist() for key in ("input", "output")}
        for _ in range(pairs)
    ]
    return {"train": made[:-1], "test": made[-1:]}


def test_the_numbered_tasks_of_a_re_arc_file_stay_together(tmp_path):
    files = {}
    for seed in range(5):
        task = random_task(seed, 30)
        files[f"re_arc/{seed:08x}.json"] = task["train"] + task["test"]
    files["arc/00000003.json"] = random_task(99)  # a re-arc file has more pairs of this task
    dataset = dataset_of(tmp_path / "out", files)
    assert len(dataset) == 5 * 5 + 1
    assert set(puzzles(dataset)) == {f"{seed:08x}" for seed in range(5)}
    check_sides(dataset, lambda task: task[:8])


def test_variants_and_the_same_id_in_two_files_stay_together(tmp_path):
    tasks = {f"{seed:08x}": random_task(seed) for seed in range(8)}
    files = {"agi1/training.json": tasks, "agi2/training.json": {}}
    for name, task in list(tasks.items())[:6]:
        files["agi2/training.json"][name] = {"train": task["train"][::-1], "test": task["test"]}
    dataset = dataset_of(tmp_path / "out", files, variants=3)
    assert set(puzzles(dataset)) == set(tasks)
    check_sides(dataset, str)


def test_a_task_under_other_names_stays_together(tmp_path):
    tasks = [random_task(seed) for seed in range(6)]
    lines = []
    for task in tasks:
        turned = [
            {key: np.rot90(9 - np.array(grid)).tolist() for key, grid in pair.items()}
            for pair in task["train"] + task["test"]
        ]
        lines.append(json.dumps({"train": turned[2:] + turned[:1], "test": [turned[1]]}))
    named = {f"a{number}": task for number, task in enumerate(tasks)}
    dataset = dataset_of(tmp_path / "out", {"named.json": named, "more.jsonl": "\n".join(lines)})
    found = puzzle_by_task(dataset)
    for number in range(6):
        assert found[f"more.jsonl#line-{number + 1:06d}"] == found[f"named.json#a{number}"]
    assert len(set(found.values())) == 6


def test_chunks_of_a_document_and_common_text_stay_together(tmp_path):
    rng = random.Random(0)
    texts = ["".join(chr(rng.randrange(97, 123)) for _ in range(900)) for _ in range(5)]
    records = [
        {"id": f"{name}{separator}{chunk}", "text": text[300 * chunk : 300 * (chunk + 1)]}
        for name, separator, text in zip("ABC", ("/", "#", "_chunk_"), texts, strict=False)
        for chunk in range(3)
    ]
    # Groups that ids do not show: overlapping windows and repeated texts.
    records += [{"text": texts[3][start : start + 400]} for start in (0, 200, 400)]
    records += [{"text": "short"}, {"text": texts[4]}, {"text": "short"}]
    lines = "\n".join(map(json.dumps, records))
    dataset = dataset_of(tmp_path / "out", {"docs.jsonl": lines})
    groups: dict[str, set[str]] = {}
    for sample, puzzle in enumerate(puzzles(dataset)):
        groups.setdefault(puzzle, set()).add(dataset.task_id(sample))
    wanted = [{record["id"] for record in records[first : first + 3]} for first in (0, 3, 6)]
    lines_of = ((10, 11, 12), (13, 15), (14,))
    wanted += [{f"line-{number:06d}" for number in numbers} for numbers in lines_of]
    assert sorted(map(sorted, groups.values())) == sorted(map(sorted, wanted))


def test_one_puzzle_cannot_be_split(tmp_path):
    task = random_task(0, 20)
    dataset = dataset_of(tmp_path / "out", {"re_arc/aa.json": task["train"] + task["test"]})
    with pytest.raises(ValueError, match="at least two puzzles"):
        split(dataset)


def test_the_tasks_of_arc_are_puzzles_of_their_own(tmp_path, arc_tasks):
    training = json.loads((arc_tasks / "training.json").read_text())
    tasks = dict(list(training.items())[:70])  # includes 27a28665, which has small pairs
    again = [{"train": task["train"][::-1], "test": task["test"]} for task in tasks.values()]
    lines = "\n".join(map(json.dumps, again))
    dataset = dataset_of(tmp_path / "out", {"training.json": tasks, "more.jsonl": lines})
    found = puzzle_by_task(dataset)
    for number, name in enumerate(tasks, 1):
        assert found[f"more.jsonl#line-{number:06d}"] == found[f"training.json#{name}"]
    assert len(set(found.values())) > 0.95 * len(tasks)


@pytest.mark.parametrize("cell", [-2, 0])
def test_cells_that_are_unknown_cannot_be_compared(tmp_path, cell):
    unknown = [Prompt("a#t/0", "t", np.arange(3, dtype=np.int32), np.full((3, 4), cell, np.int16))]
    write_dataset(tmp_path, [[3]], prompts_of=lambda *_: unknown)
    if cell == -2:
        with pytest.raises(ValueError, match=r"a#t/0.* are unknown"):
            puzzles(ActivationDataset(tmp_path))
    else:
        assert puzzles(ActivationDataset(tmp_path)) == ["t"]


def test_tokens_of_the_same_digit_are_the_same_color(tmp_path, monkeypatch):
    """A tokenizer can have another token for a digit after a space, at the start of a row."""
    digits = [[15 + digit, 115 + digit] for digit in range(10)]
    monkeypatch.setattr(synthetic, "DIGITS", digits)
    roles, rows, columns = np.indices((2, 3, 3)).reshape(3, -1)
    cells = np.stack([np.zeros_like(roles), roles, rows, columns], axis=-1)
    colors = np.random.default_rng(0).integers(0, 10, len(cells))
    first = cells[:, 3] == 0
    prompts = [
        Prompt(f"a#{name}/0", name, (15 + colors + shift).astype(np.int32), cells.astype(np.int16))
        for name, shift in (("s", 0), ("t", 100 * first))
    ]
    write_dataset(tmp_path, [[len(cells)] * 2], prompts_of=lambda *_: prompts)
    assert puzzles(ActivationDataset(tmp_path)) == ["s", "s"]
