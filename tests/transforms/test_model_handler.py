import subprocess
import sys

from tests.conftest import ROOT


def run(*arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_run_inference_gives_the_activations_of_texts_and_of_token_ids():
    run("-m", "tests.transforms.run_inference")


def test_importing_the_transforms_imports_no_model_library():
    heavy = {"jax", "tensorflow", "torch", "transformers"}
    run("-c", f"import sys, transforms; assert not {heavy} & set(sys.modules)")
