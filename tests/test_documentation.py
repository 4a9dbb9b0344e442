"""Unchanged runs of the documentation's Python and commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_pipeline.options import build_plan_parser, parse_flags
from tests.activation_dataset.reporting.grid_prompts import grid_prompt, write_prompted

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = 64
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}
NEEDS_TORCH = re.compile(r"\btorch\b|pytorch")
NEEDS_OTHERS = re.compile(r"\btensorflow\b|\btf\b|tf_data|grain")


def blocks(page: str, language: str) -> list[re.Match[str]]:
    """Return a page's blocks of code in one language; group 1 is the code."""
    fenced = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return list(fenced.finditer(PAGES[page]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the datasets that the pages name."""
    path = tmp_path_factory.mktemp("documentation")
    vectors = np.random.default_rng(0).standard_normal((64, HIDDEN), np.float32)
    prompts = [
        grid_prompt(f"training.json#{number:x}/0", [(3, 3), (2, 2)], seed=number)
        for number in range(1236)
    ]
    prompts[0] = grid_prompt("training.json#007bbfb7/0", [(3, 3), (2, 2)])
    for name in ("OUT", "demo-output", "demo-tokens"):
        write_prompted(
            path / name,
            [prompts[:700], prompts[700:]],
            lambda layer, prompt: vectors[: prompt.num_tokens],
            hidden=HIDDEN,
            layers=(10, 12),
            hook_points=("mlp_out", "resid_post") if name == "OUT" else ("resid_post",),
        )
    for name in ("examples", "docs"):
        (path / name).symlink_to(ROOT / name)
    return path


def run_python(page: str, without: re.Pattern[str]) -> None:
    """Run a page's Python in order, except blocks that need other libraries."""
    variables: dict[str, Any] = {}
    for block in blocks(page, "python"):
        if not without.search(block[1]):
            # Empty lines before the code give a traceback the page's line numbers.
            code = "\n" * PAGES[page].count("\n", 0, block.start(1)) + block[1]
            exec(compile(code, ROOT / page, "exec"), variables)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_runs(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run_python(page, without=NEEDS_TORCH)


@pytest.mark.torch
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(NEEDS_TORCH.search(each[1]) for each in blocks(page, "python"))],
)
def test_python_with_torch_runs(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run_python(page, without=NEEDS_OTHERS)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_commands_exist(page: str, folder: Path) -> None:
    """The test runs commands of readers, parses flags of the job, and looks up targets of make."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for block in blocks(page, "bash"):
        for line in block[1].replace("\\\n", " ").splitlines():
            if not line.startswith(("make ", ".venv/bin/python ", "python ")):
                continue
            words = shlex.split(line, comments=True)
            match words[0].removeprefix(".venv/bin/"), *words[1:]:
                case "make", target, *_:
                    assert f"\n{target}:" in makefile, line
                case "python", "-m", "beam_pipeline", "plan", *flags:
                    parse_flags(flags, build_plan_parser())
                case "python", "-m", "beam_pipeline", *flags:
                    parse_flags(flags)
                case "python", "-m", "activation_dataset", "verify" | "inspect", name, *_:
                    if (folder / name).exists():
                        subprocess.run([sys.executable, *words[1:]], cwd=folder, check=True)
                case "python", "-m", module, *_:
                    assert find_spec(module), line


def test_named_tests_exist() -> None:
    """Paths are relative to the repository or to `tests/`."""
    for page, text in PAGES.items():
        for path, name in re.findall(r"([\w/]+\.py)::(\w+)", text):
            file = ROOT / "tests" / path.removeprefix("tests/")
            assert f"def {name}(" in file.read_text("utf-8"), (page, path, name)


def test_linked_files_and_named_pages_exist() -> None:
    """Sphinx checks the links within `docs/`; this test checks links to it from outside."""
    named = re.compile(r"\bdocs/[\w/]+\.md\b")
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text("utf-8")
        links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text)
        assert [link for link in links if not (ROOT / link).exists()] == [], page
    packages = ("activation_dataset", "beam_pipeline", "corpus", "qwen", "templates", "transforms")
    for path in (path for name in packages for path in (ROOT / name).rglob("*.py")):
        for name in named.findall(path.read_text("utf-8")):
            assert (ROOT / name).is_file(), f"{path} names {name}"
