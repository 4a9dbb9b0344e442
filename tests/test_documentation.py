"""The Python that the documentation shows, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.activation_dataset.reporting.grid_prompts import grid_prompt, write_prompted

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the datasets that the pages speak of."""
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
    return path


@pytest.mark.parametrize("page", ["README.md", "docs/format.md", "docs/train.md"])
def test_what_it_shows_runs(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text = (ROOT / page).read_text("utf-8")
    variables: dict[str, Any] = {}
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert blocks
    for block in blocks:
        # Behind as many lines as stand before it, so that a traceback has the page's line.
        code = "\n" * text.count("\n", 0, block.start(1)) + block[1]
        exec(compile(code, ROOT / page, "exec"), variables)
