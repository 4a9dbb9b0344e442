from pathlib import Path

import numpy as np
import pytest

from examples.own_pipeline import mean_norms
from qwen.settings import ExtractorSettings
from tests.conftest import COMPILED


def test_the_example_computes_where_the_activations_are(
    short_tasks: Path, capsys: pytest.CaptureFixture[str]
):
    settings = ExtractorSettings("random:tiny", (10, 20), compile_cache=COMPILED.name)
    mean_norms(settings, str(short_tasks), [])
    lines = sorted(capsys.readouterr().out.splitlines())
    assert [line.partition(":")[0] for line in lines] == ["layer_10", "layer_20"]
    norms = [float(line.partition(":")[2]) for line in lines]
    assert np.isfinite(norms).all()
    assert 0 < norms[0] < norms[1]
