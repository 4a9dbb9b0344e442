"""Checks that the built site has all public names, needs no network, and fits every screen.

Sphinx itself refuses broken links and pages without a table of contents.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.activation_dataset.reporting.browser import json_of_page

pytestmark = pytest.mark.site

SITE = Path(__file__).resolve().parents[1] / "build" / "site"

VISIT = """<!doctype html><body><script>
const pages = %s, width = %d;
const frame = document.createElement("iframe");
frame.style = `border: 0; width: ${width}px; height: 900px`;
const found = {};
frame.onload = () => {
  const page = frame.contentDocument, article = page.querySelector("article");
  // The theme cuts off elements wider than the page, so the script measures each element. Tables
  // and code have their own scroll bars.
  const scrolls = each => each !== article && (scrolls(each.parentElement)
    || ["auto", "scroll"].includes(frame.contentWindow.getComputedStyle(each).overflowX));
  const wide = article ? [...article.querySelectorAll("*")].filter(each =>
    each.getBoundingClientRect().right > width + 1 && !scrolls(each)) : [];
  const media = [...page.querySelectorAll("img")];
  const loaded = frame.contentWindow.performance.getEntriesByType("resource");
  found[pages[0]] = {
    width: page.documentElement.scrollWidth,
    wide: wide.map(each => each.outerHTML.slice(0, 80)),
    broken: media.filter(each => !each.naturalWidth).map(each => each.src),
    foreign: loaded.map(each => each.name).filter(name => !name.startsWith("file:")),
  };
  pages.shift();
  if (pages.length) frame.src = pages[0];
  else document.body.textContent = JSON.stringify(found);
};
document.body.append(frame);
frame.src = pages[0];
</script></body>"""


@pytest.fixture(scope="module", params=[390, 1280])
def visited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the width of the window, and the findings for each page."""
    pages = sorted(SITE.rglob("*.html"))
    assert len(pages) > 20, f"{SITE} is not built: make docs"
    folder = tmp_path_factory.mktemp("browser")
    (folder / "visit.html").write_text(
        VISIT % (json.dumps([page.as_uri() for page in pages]), request.param), "utf-8"
    )
    found = json_of_page(
        folder / "visit.html", folder / "profile", "--allow-file-access-from-files"
    )
    assert len(found) == len(pages)
    return request.param, found


@pytest.mark.parametrize("package", ["activation_dataset", "qwen", "transforms"])
def test_the_reference_has_the_public_names(package: str) -> None:
    page = (SITE / "reference" / f"{package}.html").read_text("utf-8")
    public = import_module(package).__all__
    assert [name for name in public if f'id="{package}.{name}"' not in page] == []


def test_no_page_is_wider_than_the_window(visited: Any) -> None:
    width, found = visited
    assert {
        page: seen for page, seen in found.items() if seen["wide"] or seen["width"] > width
    } == {}


def test_pages_show_their_images_and_need_no_network(visited: Any) -> None:
    _, found = visited
    assert {page: seen for page, seen in found.items() if seen["broken"] or seen["foreign"]} == {}
