"""Test that runs the notebook in its folder, as Jupyter does."""

import os
import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.conftest import ROOT


def test_the_notebook_runs(tmp_path: Path, monkeypatch):
    folder = tmp_path / "examples"
    shutil.copytree(ROOT / "examples", folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(folder / "train_sae.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(folder)}})
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "explains" in code[1].outputs[0].text
    assert "of the variance of" in code[2].outputs[0].text
    assert "Features on grids" in code[3].outputs[0].data["text/html"]
