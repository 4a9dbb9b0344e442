import subprocess
import sys

from tests.conftest import ROOT


def test_run_inference_gives_the_activations_of_texts_and_of_token_ids():
    program = [sys.executable, "-m", "tests.transforms.run_inference"]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
