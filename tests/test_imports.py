"""Import this project, TensorFlow and torch in every order, each order in its own process.

The test needs both libraries. Only the environment of `make import-orders` has both.
"""

import itertools
import subprocess
import sys

import pytest

from tests.test_layering import PACKAGES, ROOT, modules_of

OURS = "\n".join(
    f"import {name}"
    for package in PACKAGES
    for name, path in modules_of(package).items()
    if path.name != "__main__.py"
)
TENSORFLOW = "import tensorflow; tensorflow.constant(1) + 1"
TORCH = "import torch; torch.ones(1) + 1"


@pytest.mark.import_orders
@pytest.mark.parametrize(
    "programs",
    itertools.permutations([OURS, TENSORFLOW, TORCH]),
    ids=lambda programs: "-".join(
        {OURS: "ours", TENSORFLOW: "tensorflow", TORCH: "torch"}[each] for each in programs
    ),
)
def test_no_order_of_imports_crashes(programs: tuple[str, ...]):
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"exit status {result.returncode}: {result.stderr}"
