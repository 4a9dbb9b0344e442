import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from activation_dataset.__main__ import main
from activation_dataset.prompts import UNKNOWN_CELL
from activation_dataset.reporting.charts import SERIES
from activation_dataset.sites import HOOK_POINTS
from tests.activation_dataset.reporting.browser import run_in_page
from tests.activation_dataset.reporting.grid_prompts import ZERO, grid_prompt, write_prompted
from tests.activation_dataset.synthetic import write_dataset

HIDDEN = 24
HOSTILE = 'x"><script>alert(1)</script>&.json#h/0'
PROMPTS = [grid_prompt(f"t.json#{n}/0", [(4, 4), (3, n + 3)], seed=n) for n in range(5)]


def vectors_of(layer, prompt):
    rows = np.random.default_rng(prompt.num_tokens).standard_normal((prompt.num_tokens, HIDDEN))
    rows[9, 3] = 900
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "dataset"
    write_prompted(
        folder,
        [[grid_prompt(HOSTILE, [(5, 30), (30, 5)]), *PROMPTS[:2]], PROMPTS[2:]],
        vectors_of,
        hidden=HIDDEN,
        layers=tuple(range(10, 24)),
        rejected={"too_long": 3},
    )
    return folder


@pytest.fixture(scope="module")
def many_sites(tmp_path_factory):
    """Path of a report on a dataset with all hook points of 24 layers."""
    folder = tmp_path_factory.mktemp("sites") / "dataset"
    layers = tuple(range(24))
    write_prompted(
        folder, [PROMPTS], vectors_of, hidden=HIDDEN, layers=layers, hook_points=HOOK_POINTS
    )
    path = folder.parent / "report.html"
    assert main(["report", str(folder), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def page(dataset):
    path = dataset.parent / "report.html"
    assert main(["report", str(dataset), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def text(page):
    return page.read_text("utf-8")


def shown(text):
    """Return the text of a page without tags."""
    return html.unescape(re.sub(r"<[^>]*>", " ", text))


def test_it_holds_all_that_it_promises(text):
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Norms by layer",
        "Prompt lengths",
        "Norms by position",
        "Outliers",
        "Massive dimensions",
        "Similarity of layers",
        "Effective dimensions",
        "Norms over the grids",
        "Layers",
    ]
    for part in ("10-23", "3 too_long", "random:tiny", "6 prompts of", "token 9, input"):
        assert part in shown(text)
    for drawing in re.findall(r"<svg [^>]*>", text):
        assert re.search(r'role="img" aria-label="[^"]+"', drawing)


def test_names_from_the_data_are_text_and_nothing_is_loaded(text):
    assert HOSTILE in shown(text)
    assert text.count("<script") == 1
    assert "default-src 'none'" in text


def test_grids_have_the_colors_of_their_tokens(text):
    drawing = re.search(r'aria-label="grid of 4 rows and 4 columns">(.*?)</svg>', text)
    assert drawing
    first = (PROMPTS[0].cells[:, :2] == [0, 0]).all(axis=1)
    drawn = np.full((4, 4), -1)
    for color, squares in re.findall(r'<path class="c(\d+)" d="(.*?)"', drawing[1]):
        for x, y in re.findall(r"M(\d+) (\d+)h1", squares):
            drawn[int(y), int(x)] = int(color)
    np.testing.assert_array_equal(drawn.ravel(), PROMPTS[0].token_ids[first] - ZERO)


def test_prompts_whose_cells_are_unknown_are_counted(tmp_path):
    prompt = PROMPTS[1]
    unknown = replace(prompt, cells=np.full_like(prompt.cells, UNKNOWN_CELL))
    write_prompted(tmp_path / "d", [[PROMPTS[0], unknown]], vectors_of, hidden=HIDDEN)
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "d"), "-o", str(page)]) == 0
    text = shown(page.read_text("utf-8"))
    assert "1 prompt whose cells could not be mapped" in text
    assert "grid cells unknown" in text


def test_hook_points_are_told_apart(many_sites):
    text = many_sites.read_text("utf-8")
    assert re.findall(r"<h3>(.*?)</h3>", text) == list(HOOK_POINTS) * 4
    assert re.findall(r'<tr class="group"><th>(.*?)</th>', text) == list(HOOK_POINTS)
    assert set(re.findall(r'<g class="(s\d+)">', text)) == set(SERIES)
    assert all(f".{name} {{ stroke" in text for name in SERIES)


def test_the_same_dataset_gives_the_same_page(dataset, page, tmp_path):
    again = tmp_path / "again.html"
    assert main(["report", str(dataset), "-o", str(again)]) == 0
    assert again.read_bytes() == page.read_bytes()


UNKNOWN = replace(PROMPTS[0], cells=np.full_like(PROMPTS[0].cells, UNKNOWN_CELL))


def no_vectors(_, prompt):
    return np.full((prompt.num_tokens, 8), np.nan, np.float32)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda d: write_dataset(d, [[3, 4] * 10, [5]], "mean"), "one vector for each prompt"),
        (lambda d: write_prompted(d, [[UNKNOWN]], no_vectors), "cells of prompts are unknown"),
        (lambda d: write_prompted(d, [[]], no_vectors), "No vector that was read"),
        (lambda d: write_prompted(d, [PROMPTS], no_vectors), "No vector that was read"),
        (lambda d: write_dataset(d, [[3]], "none", layers=(7,)), "too few vectors to compare"),
    ],
    ids=["pooled", "unknown cells", "no samples", "not finite", "one layer"],
)
def test_missing_parts_of_a_dataset_are_reported(tmp_path, write, said):
    write(tmp_path / "d")
    path = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "d"), "-o", str(path)]) == 0
    assert said in path.read_text("utf-8")


# Finds elements outside the window, and texts in charts that are small, cut off or overlapping.
WHOLE = """
    const past = [...document.querySelectorAll("main *")]
        .filter(e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth)
    const faults = past.map(e => "past: " + e.outerHTML.slice(0, 80));
    if (document.documentElement.scrollWidth > innerWidth) faults.push("scrolls");
    for (const chart of document.querySelectorAll(".chart")) {
        const edge = chart.getBoundingClientRect();
        const texts = [...chart.querySelectorAll("text:not(:empty)")];
        const boxes = texts.map(e => e.getBoundingClientRect());
        boxes.forEach((a, n) => {
            const text = texts[n].textContent;
            if (a.height < 8) faults.push("small: " + text);
            if (a.left < edge.left - 2 || a.right > edge.right + 2) faults.push("cut: " + text);
            for (const b of boxes.slice(n + 1)) {
                const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                if (Math.min(across, down) >= 4) faults.push("over another: " + text);
            }
        });
    }
    const style = getComputedStyle(document.body);
    const [background, ink] = [style.backgroundColor, style.color].map(
        color => color.match(/\\d+/g).map(Number).reduce((a, b) => a + b));
    return [faults, background < ink];
"""


@pytest.mark.parametrize("which", ["page", "many_sites"])
@pytest.mark.parametrize(("width", "dark"), [(390, False), (820, True), (1280, False)])
def test_a_browser_shows_it_whole(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, width: int, dark: bool
):
    page: Path = request.getfixturevalue(which)
    assert run_in_page(page, WHOLE, tmp_path, width, dark) == [[], dark]


def test_the_slider_shows_another_layer(page: Path, tmp_path: Path):
    script = """
        const figure = document.querySelector(".grids"), slider = figure.querySelector("input");
        const state = () => [
            figure.querySelector("output").textContent,
            [...figure.querySelectorAll(".pairs rect")].map(e => e.className.baseVal),
        ];
        const before = state();
        slider.value = 0;
        slider.dispatchEvent(new Event("input"));
        return [figure.querySelector(".slider").hidden, before, state()];
    """
    hidden, last, first = run_in_page(page, script, tmp_path, 390)
    assert (hidden, last[0], first[0]) == (False, "23", "10")
    assert len(first[1]) == len(last[1])
    assert "hx" in last[1]
