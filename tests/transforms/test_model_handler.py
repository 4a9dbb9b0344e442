import subprocess
import sys

import pytest

import transforms
from tests.conftest import ROOT


def run(*arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_run_inference_gives_the_activations_of_texts_and_of_token_ids():
    run("-m", "tests.transforms.run_inference")


def test_a_transform_is_imported_when_it_is_used():
    run(
        "-c",
        "import sys, transforms; assert 'apache_beam' not in sys.modules\n"
        "for name in transforms.__all__: assert getattr(transforms, name).__name__ == name\n"
        "assert 'jax' not in sys.modules",
    )
    with pytest.raises(AttributeError, match="Absent"):
        _ = transforms.Absent
