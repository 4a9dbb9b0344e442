import shutil
from pathlib import Path

import numpy as np
import pytest

from examples.own_pipeline import mean_norms
from qwen.settings import ExtractorSettings
from tests.conftest import COMPILED

SETTINGS = ExtractorSettings("random:tiny", (10, 20), compile_cache=COMPILED.name)


def test_the_example_computes_where_the_activations_are(
    short_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tasks = shutil.copytree(short_tasks, tmp_path / "tasks")
    (tasks / "bad.json").write_text("[]")
    mean_norms(SETTINGS, str(tasks), [])
    out, err = capsys.readouterr()
    assert "rejected: bad.json: " in err
    lines = sorted(out.splitlines())
    assert [line.partition(":")[0] for line in lines] == ["layer_10", "layer_20"]
    norms = [float(line.partition(":")[2]) for line in lines]
    assert np.isfinite(norms).all()
    assert 0 < norms[0] < norms[1]


def test_the_example_fails_without_samples(tmp_path: Path):
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(Exception, match="no sample is left"):
        mean_norms(SETTINGS, str(tmp_path), [])
