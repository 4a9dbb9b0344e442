"""HTML pages in headless Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_WATCH = """<script>
const problems = [];
for (const kind of ["error", "securitypolicyviolation"])
  addEventListener(kind, event => problems.push(event.message || event.blockedURI), true);
</script>"""
_ANSWER = """<script>addEventListener("load", () => {
  const found = (() => { %s })();
  const loaded = performance.getEntriesByType("resource").map(each => each.name);
  parent.postMessage(JSON.stringify([found, problems.concat(loaded)]), "*");
})</script>"""
_FRAME = """<iframe src="%s" style="border: 0; width: %dpx; height: 900px"></iframe>
<script>addEventListener("message", event => document.body.textContent = event.data)</script>"""


def run_in_page(page: Path, script: str, folder: Path, width: int, dark: bool = False) -> Any:
    """Run the body of a JavaScript function in a page and return its result.

    The test fails if the page loads a resource or has an error, and is skipped without Chromium.

    Args:
        page: the HTML file.
        script: body of the function.
        folder: folder for temporary files.
        width: width of the page in pixels.
        dark: True for the dark color scheme.
    """
    watched = page.read_text("utf-8").replace("<head>", f"<head>{_WATCH}", 1)
    (folder / "watched.html").write_text(watched + _ANSWER % script, "utf-8")
    (folder / "frame.html").write_text(_FRAME % ("watched.html", width), "utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    answer, problems = json_of_page(folder / "frame.html", folder / "profile", scheme)
    assert problems == []
    return answer


def json_of_page(page: Path, profile: Path, *flags: str) -> Any:
    """Return the JSON that a page writes as the text of its body.

    Args:
        page: file that Chromium opens without a window.
        profile: folder for Chromium's own files.
        flags: additional flags of Chromium.
    """
    executable = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip("no Chromium is installed; apt-get install chromium")
    always = (
        "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --dump-dom"
    )
    shown = subprocess.run(
        [
            *(executable, *always.split(), *flags, f"--user-data-dir={profile}"),
            *("--virtual-time-budget=10000", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    body = re.search("<body>(.*)</body>", shown.stdout, re.DOTALL)
    assert body, shown.stderr
    return json.loads(html.unescape(body[1]))
