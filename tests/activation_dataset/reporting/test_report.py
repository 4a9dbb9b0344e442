import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from activation_dataset import ActivationDataset
from activation_dataset.__main__ import main
from activation_dataset.sites import HOOK_POINTS
from tests.activation_dataset.reporting import browser
from tests.activation_dataset.reporting.grid_prompts import ZERO, grid_prompt, write_prompted
from tests.activation_dataset.synthetic import make_prompts, write_dataset

HIDDEN = 24
HOSTILE = 'x"><script>alert(1)</script>&.json#h/0'
PROMPTS = [grid_prompt(f"t.json#{n}/0", [(4, 4), (3, n + 3)], seed=n) for n in range(5)]
VOID = {"meta", "link", "input", "br", "img", "hr"}


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
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
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


def headings(document):
    return re.findall(r"<h2>(.*?)</h2>", document)


def test_it_holds_all_that_it_promises(page, document):
    assert headings(page.read_text("utf-8")) == [
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
    for text in ("10-23", "3 too_long", "random:tiny", "6 prompts of", "token 9, input"):
        assert text in document.text
    charts = [attributes for tag, attributes in document.elements if tag == "svg"]
    assert all(each["role"] == "img" and each["aria-label"] for each in charts)


def test_names_from_the_data_are_text(document):
    assert HOSTILE in document.text
    assert [tag for tag, _ in document.elements].count("script") == 1


def test_nothing_is_loaded_from_elsewhere(page, document):
    text = page.read_text("utf-8")
    for tag, attributes in document.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text


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


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_pooled_dataset_has_no_grids(tmp_path, pooling):
    write_dataset(tmp_path / "pooled", [[3, 4] * 10, [5]], pooling)
    path = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "pooled"), "-o", str(path)]) == 0
    text = path.read_text("utf-8")
    assert "one vector for each prompt" in Document(text).text
    assert ("Norms by position" in headings(text)) == (pooling == "last")


@pytest.mark.parametrize(("prompts", "value"), [([], 0), (PROMPTS, 0), (PROMPTS, np.nan)])
def test_a_dataset_without_samples_or_norms(tmp_path, prompts, value):
    def vectors(_, prompt):
        return np.full((prompt.num_tokens, 8), value, np.float32)

    write_prompted(tmp_path / "d", [prompts], vectors)
    path = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "d"), "-o", str(path)]) == 0
    assert "No vector that was read" in Document(path.read_text("utf-8")).text


def test_one_layer_and_one_sample(tmp_path):
    write_dataset(tmp_path / "tiny", [[3]], "none", layers=(7,), prompts_of=make_prompts)
    path = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "tiny"), "-o", str(path)]) == 0
    text = Document(path.read_text("utf-8")).text
    assert "One layer, or too few vectors to compare" in text
    assert "no prompt that was read shows grids" in text


def test_a_bad_dataset_is_said_in_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_numbers_are_those_of_the_metadata(dataset, document):
    statistics = ActivationDataset(dataset).metadata.statistics[10]
    assert f"{statistics.count:,}" in document.text
    assert f"{statistics.max_norm:,.0f}" in document.text


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.find() is None:
        pytest.skip("no Chromium is installed; apt-get install chromium")
    with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("which", ["page", "many_sites"])
def test_a_browser_shows_it_whole(
    chromium: browser.Browser, request: pytest.FixtureRequest, which: str, width: int, dark: bool
):
    page: Path = request.getfixturevalue(which)
    chromium.requests.clear()
    chromium.show(page, width, 900, dark)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    too_wide = chromium.evaluate(
        """[...document.querySelectorAll("main *")]
        .filter(e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth)
        .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert too_wide == []
    assert chromium.requests == [page.as_uri()]
    assert chromium.errors == []
    # The text of charts is scaled with them, and must stay readable.
    smallest = chromium.evaluate(
        """Math.min(...[...document.querySelectorAll(".chart text")].filter(e => e.textContent)
        .map(e => e.getBoundingClientRect().height))"""
    )
    assert smallest >= 8
    # Nothing is written beyond a chart's edge, where it would be cut off, or over something else.
    texts = chromium.evaluate(
        """[...document.querySelectorAll(".chart")].map(chart => [chart, ...chart
        .querySelectorAll("text:not(:empty)")].map(e => e.getBoundingClientRect())
        .map(r => [r.left, r.top, r.right, r.bottom]))"""
    )
    for chart, *boxes in texts:
        for place, (left, top, right, bottom) in enumerate(boxes):
            assert left >= chart[0] - 2
            assert right <= chart[2] + 2
            for other in boxes[place + 1 :]:
                across = min(right, other[2]) - max(left, other[0])
                down = min(bottom, other[3]) - max(top, other[1])
                assert min(across, down) < 4, (chart, boxes[place], other)
    background, ink = chromium.evaluate(
        """[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]
        .map(c => c.match(/\\d+/g).map(Number).reduce((a, b) => a + b))"""
    )
    assert (background < ink) == dark
    assert chromium.screenshot(whole=False).startswith(b"\x89PNG")


def test_the_slider_shows_another_layer(chromium: browser.Browser, page: Path):
    chromium.show(page, 390, 844)
    state = """[
        document.querySelector(".grids output").textContent,
        [...document.querySelectorAll(".grids .pairs rect")].map(e => e.className.baseVal).join(),
        document.querySelector(".grids .slider").hidden,
    ]"""
    layer, cells, hidden = chromium.evaluate(state)
    assert (layer, hidden) == ("23", False)
    chromium.evaluate(
        """(s => { s.value = 0; s.dispatchEvent(new Event("input")); })(
        document.querySelector(".grids input"))"""
    )
    other_layer, other_cells, _ = chromium.evaluate(state)
    assert other_layer == "10"
    assert len(other_cells) == len(cells)
    assert "hx" in cells
