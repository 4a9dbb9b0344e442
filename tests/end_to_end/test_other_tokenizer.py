"""A checkpoint with a tokenizer other than Qwen's: groups of digits, ids beyond the embedding."""

import dataclasses
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from activation_dataset import ActivationDataset
from activation_dataset.__main__ import main as dataset_command
from activation_dataset.prompts import read_prompts
from activation_dataset.reporting.grid_figure import NO_COLOR, colors_of
from tests.end_to_end.job import metadata_of, problems_of, rejections, run
from tests.qwen.checkpoints import SMALL, write_checkpoint
from tests.qwen.test_tokenizer import SPECIAL, TEXTS, byte_level

GRIDS = {"narrow": [[1], [2]], "wide": [[1, 1], [2, 2]]}
TASKS = {
    name: {"train": [{"input": grid, "output": [[3]]}], "test": [{"input": [[4]]}]}
    for name, grid in GRIDS.items()
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    """Return the dataset and the tokenizer, whose special tokens have ids beyond the embedding."""
    folder, tasks = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("tasks")
    tokenizer = byte_level(r"\p{N}{1,3}")
    size = tokenizer.get_vocab_size() - len(SPECIAL)
    model = write_checkpoint(folder / "model", dataclasses.replace(SMALL, vocab_size=size))
    tokenizer.save(str(model / "tokenizer.json"))
    (tasks / "tasks.json").write_text(json.dumps(TASKS))
    texts = {str(number): text for number, text in enumerate(TEXTS) if text}
    lines = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    (tasks / "texts.jsonl").write_text("\n".join(lines))
    flags = ("--layers_to_extract", "0", "--pooling", "none", "--max_rejected", "1")
    run(model, tasks, folder / "out", *flags)
    return folder / "out", tokenizer


def test_the_dataset_says_which_cells_are_unknown(
    found: tuple[Path, Tokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = found
    assert problems_of(out) == []
    assert metadata_of(out).counts.unknown_cell_samples == 1
    dataset = ActivationDataset(out)
    wide = dataset.where(task="wide").tolist()
    assert {dataset.trace(number).role for number in wide} == {None}
    with pytest.warns(UserWarning, match="cells of 1 samples, such as .*wide.* are unknown"):
        cells = dataset.where(role="input")
    assert {dataset.trace(number).name.task_id for number in cells.tolist()} == {"narrow"}
    assert dataset_command(["inspect", str(out)]) == 0
    for text in (capsys.readouterr().out, (out / "README.md").read_text()):
        assert "of 1 sample:" in text
    assert dataset_command(["report", str(out), "-o", str(tmp_path / "report.html")]) == 0
    assert "cells of prompts are unknown" in (tmp_path / "report.html").read_text("utf-8")


def test_cells_have_the_colors_of_their_digits(found: tuple[Path, Tokenizer]) -> None:
    out, tokenizer = found
    assert tokenizer.token_to_id("0") != 15, "as in Qwen's vocabulary"
    dataset = ActivationDataset(out)
    places = dataset.locate(dataset.where(task="narrow"))
    on_cell = places.cells[:, 1] >= 0
    colors = colors_of(places.token_ids, dataset.metadata.run)
    assert colors[on_cell].tolist() == [1, 2, 3, 4]
    assert (colors[~on_cell] == NO_COLOR).all()


def test_a_text_with_an_id_beyond_the_embedding_is_rejected_and_the_others_are_right(
    found: tuple[Path, Tokenizer],
) -> None:
    out, tokenizer = found
    (rejected,) = rejections(out)
    assert (rejected["task_id"], rejected["reason"]) == ("3", "unknown_token_id")
    with open(next((out / "prompts").iterdir()), "rb") as stream:
        prompts = {prompt.task_id: prompt for prompt in read_prompts(stream, "prompts")}
    for name in ("1", "2", "4"):
        text = TEXTS[int(name)]
        assert prompts[name].token_ids.tolist() == tokenizer.encode(text).ids
