import re

import numpy as np
import pytest

from activation_dataset.__main__ import main
from tests.activation_dataset.reporting.grid_prompts import grid_prompt, write_prompted
from tests.activation_dataset.synthetic import write_dataset

HIDDEN = 16


def vectors_of(layer, prompt):
    rows = np.random.default_rng(prompt.num_tokens).standard_normal((prompt.num_tokens, HIDDEN))
    rows[2, 7] = 600 if layer < 12 else 0
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect") / "dataset"
    prompts = [grid_prompt(f"t.json#{n}/0", [(4, 4), (3, n + 3)], seed=n) for n in range(5)]
    write_prompted(
        folder, [prompts[:2], prompts[2:]], vectors_of, hidden=HIDDEN, rejected={"too_long": 3}
    )
    return folder


def rows_below(text, head):
    """The cells of a table, whose head begins so."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.split()[: len(head)] == head)
    rows = []
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        rows.append(line.split())
    return rows


def test_a_summary_and_a_table_of_the_layers(dataset, capsys):
    assert main(["inspect", str(dataset)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{dataset}: 5 samples, ")
    assert "random:tiny, computed in bfloat16" in text
    assert "3 (10-12), 16 wide, resid_post" in text
    assert "none: every token" in text
    assert "8 files in 2 shards" in text
    assert "3 too_long" in text
    assert "non-finite 0 vectors" in text
    rows = rows_below(text, ["layer", "mean"])
    assert [row[0] for row in rows] == ["10", "11", "12"]
    counts = [row[-2:] for row in rows]  # of outliers
    assert counts == [["5", "5"], ["5", "5"], ["0", "0"]]
    assert "7: layers 10-11, up to 100%" in text


def test_vectors_are_read_only_on_request(dataset, capsys):
    assert main(["inspect", str(dataset), "--full"]) == 0
    text = capsys.readouterr().out
    assert "5 prompts of 55 to 67 tokens" in text
    assert "no prompt has the same tokens as another" in text
    by_position = rows_below(text, ["from", "0", "1", "3"])
    assert float(by_position[0][2]) > 20
    assert float(by_position[2][2]) < 2
    assert [row[0] for row in rows_below(text, ["layer", "input", "cells"])] == ["10", "11", "12"]
    assert text.count("token 2, input of example 0, row 0, column 1") == 5
    assert len(rows_below(text, ["layer", "dimensions"])) == 3


def test_hook_points_are_told_apart_in_a_terminal_of_80_columns(tmp_path, capsys):
    folder = tmp_path / "d"
    prompts = [grid_prompt(f"t.json#{n}/0", [(25, 30), (30, 30), (9, 3)], seed=n) for n in range(3)]
    write_prompted(
        folder, [prompts], vectors_of, hidden=HIDDEN, hook_points=("attn_out", "resid_post")
    )
    assert main(["inspect", str(folder), "--full"]) == 0
    text = capsys.readouterr().out
    layers = ["10", "11", "12"]
    rows = rows_below(text, ["layer", "mean"])
    assert [row[0] for row in rows] == ["attn_out:", *layers, "resid_post:", *layers]
    likeness = rows_below(text, ["layer", "dimensions"])
    assert [row[-1] == "-" for row in likeness if len(row) > 1] == [False, False, True] * 2
    assert re.search(r"x in layer 1[01] (attn_out|resid_post): t.json#", text)
    tables = [line for line in text.splitlines() if line[:5].strip() in ("layer", "from", *layers)]
    assert len(tables) == 4 * 7
    assert max(map(len, tables)) <= 80


def test_a_pooled_dataset(tmp_path, capsys):
    write_dataset(tmp_path / "mean", [[3, 4], [5]], pooling="mean")
    assert main(["inspect", str(tmp_path / "mean"), "--full"]) == 0
    text = capsys.readouterr().out
    assert "mean: the mean over each prompt" in text
    assert "by position" not in text


def test_no_dataset_is_said_in_one_line(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{tmp_path} cannot be inspected: {tmp_path} has no metadata.json")
    assert error.count("\n") == 1
