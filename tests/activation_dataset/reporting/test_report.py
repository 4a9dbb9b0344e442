import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from activation_dataset.__main__ import main
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
    """The page of a dataset with five hook points of 24 layers."""
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


class Document(HTMLParser):
    """Elements that were opened, and the text of those that are shown."""

    def __init__(self, text):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in {"meta", "link", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data + " "


@pytest.fixture(scope="module")
def document(page):
    return Document(page.read_text("utf-8"))


def test_it_holds_all_that_it_promises(page, document):
    assert re.findall(r"<h2>(.*?)</h2>", page.read_text("utf-8")) == [
        "Norms by layer",
        "Prompt lengths",
        "Norms by position",
        "Outliers",
        "Massive dimensions",
        "Likeness of layers",
        "Effective dimensions",
        "Norms over the grids",
        "Layers",
    ]
    assert "default-src 'none'" in page.read_text("utf-8")
    for text in ("10-23", "3 too_long", "random:tiny", "6 prompts of", "token 9, input"):
        assert text in document.text
    charts = [attributes for tag, attributes in document.elements if tag == "svg"]
    assert all(each["role"] == "img" and each["aria-label"] for each in charts)


def test_names_from_the_data_are_text(document):
    assert HOSTILE in document.text
    assert [tag for tag, _ in document.elements].count("script") == 1


def test_grids_have_the_colors_of_their_tokens(document):
    grids = [
        (place, attributes)
        for place, (tag, attributes) in enumerate(document.elements)
        if tag == "svg" and (attributes["aria-label"] or "").startswith("a grid of 4 rows and 4")
    ]
    assert len(grids) >= 2
    first = (PROMPTS[0].cells[:, :2] == [0, 0]).all(axis=1)
    tokens = PROMPTS[0].token_ids[first].reshape(4, 4)
    drawn = np.full((4, 4), -1)
    for tag, attributes in document.elements[grids[0][0] + 1 :]:
        if tag != "path":
            break
        color = int((attributes["class"] or "")[1:])
        for x, y in re.findall(r"M(\d+) (\d+)h1", attributes["d"] or ""):
            drawn[int(y), int(x)] = color
    np.testing.assert_array_equal(drawn, tokens - ZERO)


def test_hook_points_are_told_apart(many_sites):
    text = many_sites.read_text("utf-8")
    assert re.findall(r"<h3>(.*?)</h3>", text) == list(HOOK_POINTS) * 4
    assert re.findall(r'<tr class="group"><th>(.*?)</th>', text) == list(HOOK_POINTS)
    assert set(re.findall(r'<g class="s(\d)">', text)) == set("01234")


def test_the_same_dataset_gives_the_same_page(dataset, page, tmp_path):
    again = tmp_path / "again.html"
    assert main(["report", str(dataset), "-o", str(again)]) == 0
    assert again.read_bytes() == page.read_bytes()


def no_vectors(_, prompt):
    return np.full((prompt.num_tokens, 8), np.nan, np.float32)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda d: write_dataset(d, [[3, 4] * 10, [5]], "mean"), "one vector for each prompt"),
        (lambda d: write_prompted(d, [[]], no_vectors), "No vector that was read"),
        (lambda d: write_prompted(d, [PROMPTS], no_vectors), "No vector that was read"),
        (lambda d: write_dataset(d, [[3]], "none", layers=(7,)), "too few vectors to compare"),
    ],
    ids=["pooled", "no samples", "not finite", "one layer"],
)
def test_what_a_dataset_lacks_is_said(tmp_path, write, said):
    write(tmp_path / "d")
    path = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "d"), "-o", str(path)]) == 0
    assert said in Document(path.read_text("utf-8")).text


# Elements past the window; texts of charts that are small, cut off, or over one another.
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
