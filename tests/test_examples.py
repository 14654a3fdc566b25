"""The examples run: the usual script on a few images, and the notebook in a kernel; `make docs` runs the gallery."""

from __future__ import annotations

import functools
import runpy
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA_DIR, ROOT, WEIGHTS_FILE

from pipeline.common.progress import in_notebook

EXAMPLES = ROOT / "examples"
pytestmark = [pytest.mark.tensorflow, pytest.mark.weights]


def test_the_usual_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It stands in the README line by line, and runs: here on a few random images and with weights that are at hand."""
    import keras

    script = (EXAMPLES / "cifar10_keras.py").read_text(encoding="utf-8")
    (block,) = [
        part for part in (ROOT / "README.md").read_text(encoding="utf-8").split("```") if "vgg16.predict" in part
    ]
    assert block.removeprefix("python\n") in script
    random = np.random.default_rng(0)
    splits = [(random.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n).reshape(-1, 1) % 3) for n in (30, 9)]
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: splits)
    vgg16 = functools.partial(keras.applications.VGG16, weights=str(WEIGHTS_FILE))
    monkeypatch.setattr(keras.applications, "VGG16", vgg16)
    runpy.run_path(str(EXAMPLES / "cifar10_keras.py"))
    assert "test accuracy" in capsys.readouterr().out


def test_the_notebook_has_its_outputs_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)

    def outputs() -> list[list[str]]:
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run once, from the top"
        return [sorted({output.output_type for output in cell.outputs}) for cell in cells]

    committed = outputs()
    assert "Warning" not in str(notebook.cells)
    (tmp_path / "data").symlink_to(DATA_DIR)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert outputs() == committed
    assert not in_notebook(), "only what it started is one"
    assert sum("display_data" in each for each in committed) == 3, "the images, what is confused, and the mistakes"
