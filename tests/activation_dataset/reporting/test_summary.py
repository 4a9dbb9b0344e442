from dataclasses import replace

import numpy as np
import pytest

from activation_dataset.__main__ import main
from activation_dataset.reporting.summary import (
    count_of,
    layer_table,
    massive_dimensions,
    number,
    shares,
    size,
)
from activation_dataset.sites import HookPoint, layers_named
from tests.activation_dataset.reporting.grid_prompts import grid_prompt, write_prompted
from tests.activation_dataset.synthetic import write_dataset

HIDDEN = 40


def vectors_of(layer, prompt):
    """Return unit vectors except norms 30 and 300 in layer 10, zeros and one NaN in layer 11."""
    rows = np.zeros((prompt.num_tokens, HIDDEN), np.float32)
    if layer == 10:
        rows[np.arange(len(rows)), np.arange(len(rows)) % HIDDEN] = 1
        rows[3] *= 30
        rows[5] *= 300
    else:
        rows[7, 2] = np.nan
    return rows


@pytest.fixture
def metadata(tmp_path):
    prompts = [grid_prompt("a.json#a/0", [(6, 6), (6, 6)])]
    return write_prompted(tmp_path / "d", [prompts], vectors_of, hidden=HIDDEN, layers=(10, 11))


def test_outliers_are_counted_by_multiples_of_the_median(metadata):
    table = layer_table(metadata)
    units, zeros = (dict(zip(table.head, row, strict=True)) for row in table.groups[""])
    assert (units["max"], units[">=10x"], units[">=100x"]) == ("300", "2", "1")
    assert (zeros["non-finite"], zeros["max/median"], zeros[">=10x"]) == ("1", "0x", "0")
    assert all(sites == [10] for _, sites, _ in massive_dimensions(metadata))


def test_a_layer_without_finite_vectors_has_no_statistics(tmp_path, capsys):
    def vectors(layer, prompt):
        rows = np.ones((prompt.num_tokens, HIDDEN), np.float32)
        rows[:, 0] = np.nan if layer == 11 else 0
        return rows

    prompts = [grid_prompt("a.json#a/0", [(6, 6), (6, 6)])]
    metadata = write_prompted(tmp_path / "d", [prompts], vectors, hidden=HIDDEN, layers=(10, 11))
    known, unknown = layer_table(metadata).groups[""]
    assert "-" not in known
    assert unknown == ["11", *["-"] * 9, str(metadata.total_vectors)]
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "d"), "-o", str(page)]) == 0
    text = page.read_text("utf-8")
    assert "layer 10: median" in text
    assert "layer 11: median" not in text


@pytest.mark.parametrize(
    ("pooling", "tokens", "said"),
    [
        ("none", None, "pooling   none; every token\n"),
        ("none", "skip_first:3&every:2", "pooling   none; the chosen tokens, skip_first:3&every:2"),
        ("mean", None, "the mean over each prompt\n"),
        ("mean", "assistant", "the mean over the chosen tokens of each prompt, assistant"),
    ],
)
def test_inspect_says_which_tokens_the_vectors_belong_to(tmp_path, capsys, pooling, tokens, said):
    metadata = write_dataset(tmp_path, [[3, 4]], pooling)
    bos = {"id": 2000, "token": "<|endoftext|>"}
    settings = {**metadata.run.settings, "prepend_bos": bos} if tokens else {}
    if tokens:
        settings["tokens"] = tokens
    metadata = replace(metadata, run=replace(metadata.run, settings=settings))
    (tmp_path / "metadata.json").write_text(metadata.to_json())
    assert main(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert said in text
    assert ("'<|endoftext|>' (id 2000) prepended to each sample" in text) == (tokens is not None)


def test_massive_dimensions_come_with_their_layers_and_shares(tmp_path):
    def vectors(layer, prompt):
        rows = np.random.default_rng(layer).standard_normal((prompt.num_tokens, HIDDEN))
        rows[:, 7] *= 100
        rows[:, 4] -= 50 * (layer == 11)
        return rows.astype(np.float32)

    metadata = write_prompted(
        tmp_path, [[grid_prompt("a.json#a/0", [(9, 9), (9, 9)])]], vectors, hidden=HIDDEN
    )
    first, second = massive_dimensions(metadata)
    assert (first[:2], second[:2]) == ((7, [10, 11, 12]), (4, [11]))
    assert first[2] == max(shares(each)[7] for each in metadata.statistics.values())
    assert shares(metadata.statistics[11]).sum() == pytest.approx(1)


def test_inspect_prints_facts_and_a_table_of_the_layers(metadata, tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "d")]) == 0
    text = capsys.readouterr().out
    for part in (str(tmp_path / "d"), "129 vectors in each layer", "by xla", "every token"):
        assert part in text
    assert "1 non-finite vector in total" in text


def test_inspect_tells_hook_points_apart_in_80_columns(tmp_path, capsys):
    hook_points: tuple[HookPoint, ...] = ("attn_out", "resid_post")
    write_dataset(tmp_path, [[300] * 12], "none", hook_points=hook_points, rejected={"too_long": 3})
    assert main(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "3 too_long" in text
    table = text.partition("of each layer\n")[2].partition("\n\n")[0].splitlines()
    layers = ["10", "11", "12"]
    expected = ["layer", "attn_out:", *layers, "resid_post:", *layers]
    assert [line.split()[0] for line in table] == expected
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.250"), (41.44, "41.4"), (12345.6, "12,346"), (3e-7, "3.00e-07")],
)
def test_numbers_have_three_digits_or_more(value, text):
    assert number(value) == text


def test_words():
    assert [size(each) for each in (0, 999, 999_600, 1.234e12)] == [
        *("0 B", "999 B", "1.00 MB", "1.23 TB")
    ]
    assert [count_of(n, "shard") for n in (0, 1, 1200)] == ["0 shards", "1 shard", "1,200 shards"]
    assert layers_named([0, 4, 8, 9, 10, "blocks.3.hook_mlp_out"]) == "0, 4, 8-10; 3 mlp_out"


def test_a_prepended_token_of_a_model_without_tokenizer_has_only_an_id(tmp_path, capsys):
    metadata = write_dataset(tmp_path, [[3, 4]])
    settings = {**metadata.run.settings, "prepend_bos": {"id": 2000}}
    metadata = replace(metadata, run=replace(metadata.run, settings=settings))
    (tmp_path / "metadata.json").write_text(metadata.to_json())
    assert main(["inspect", str(tmp_path)]) == 0
    assert "; id 2000 prepended to each sample" in capsys.readouterr().out
