"""Runs of the documentation's Python code and commands, unchanged."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_pipeline.flags import build_plan_parser
from beam_pipeline.options import parse_flags
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
NEEDS_TRAINERS = re.compile(r"activation_dataset export\b")
NEEDS_OTHERS = re.compile(r"\btensorflow\b|\btf\b|tf_data|grain")


def blocks(page: str) -> list[re.Match[str]]:
    """Return a page's blocks of code: group 1 is the language and group 2 the code."""
    fenced = re.compile(r"^```(python|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return list(fenced.finditer(PAGES[page]))


def commands(block: re.Match[str]) -> list[str]:
    """Return the command lines of a block; in a console, a prompt precedes each of them."""
    lines = block[2].replace("\\\n", " ").splitlines()
    if block[1] == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.startswith(("make ", ".venv/bin/python ", "python "))]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the datasets that the pages name."""
    path = tmp_path_factory.mktemp("datasets")
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
    return path


def reader_folder(page: str, datasets: Path, folder: Path) -> Path:
    """Fill a folder with what a page needs and does not make itself."""
    for path in (*datasets.iterdir(), ROOT / "examples", ROOT / "docs"):
        if f"--output_dir {path.name}\n" not in PAGES[page]:
            (folder / path.name).symlink_to(path)
    return folder


def run_python(page: str, block: re.Match[str], variables: dict[str, Any]) -> None:
    # Empty lines before the code give a traceback the page's line numbers.
    code = "\n" * PAGES[page].count("\n", 0, block.start(2)) + block[2]
    exec(compile(code, ROOT / page, "exec"), variables)


def run_command(line: str, folder: Path) -> None:
    """Run a command that needs only this machine; check the names and flags of any other one."""
    words = shlex.split(line, comments=True)
    match words[0].removeprefix(".venv/bin/"), *words[1:]:
        case "make", *arguments:
            makefile = (ROOT / "Makefile").read_text("utf-8")
            targets = [each for each in arguments if "=" not in each]
            assert [each for each in targets if f"\n{each}:" not in makefile] == []
            return
        case "python", "-m", "beam_pipeline", "plan", *flags:
            parse_flags(flags, build_plan_parser())
            local = False
        case "python", "-m", "beam_pipeline", *flags:
            parse_flags(flags)
            local = "random:tiny" in flags and not any("--runner" in flag for flag in flags)
        case "python", "-m", module, *arguments:
            assert find_spec(module), line
            local = any((folder / each).exists() for each in arguments)
    if local:
        done = subprocess.run([sys.executable, *words[1:]], cwd=folder, capture_output=True)
        assert done.returncode == 0, f"{line}\n{done.stderr.decode()}"


def run_page(
    page: str, folder: Path, wants: Callable[[str], bool], needs_others: re.Pattern[str]
) -> None:
    """Run a page from top to bottom, without unwanted commands and code that needs others."""
    variables: dict[str, Any] = {}
    for block in blocks(page):
        if block[1] != "python":
            for line in filter(wants, commands(block)):
                run_command(line, folder)
        elif not needs_others.search(block[2]):
            run_python(page, block, variables)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_code_and_commands_run_in_order(
    page: str, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader_folder(page, datasets, tmp_path))
    run_page(page, tmp_path, lambda line: not NEEDS_TRAINERS.search(line), NEEDS_TORCH)


@pytest.mark.torch
@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if any(each[1] == "python" and NEEDS_TORCH.search(each[2]) for each in blocks(page))
    ],
)
def test_code_with_torch_runs(
    page: str, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader_folder(page, datasets, tmp_path))
    run_page(page, tmp_path, lambda line: bool(NEEDS_TRAINERS.search(line)), NEEDS_OTHERS)


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
