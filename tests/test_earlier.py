"""What an earlier version left is found, shown, compared and used: nothing of it is computed again.

`earlier/` was made by version 0.1.0: caches of the digits and of a folder, three runs, their models, a sweep's trials
and a list of predictions, all with the untrained network, which needs no download.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from conftest import Run

COMMON = ("--image-size", "32", "--weights", "random", "--precision", "float32")
DIGITS = ("--dataset", "digits", "--taps", "block3_pool.max,block5_pool.avg", "--limit", "80", *COMMON)
POSTERS = ("--dataset", "posters", "--taps", "top", *COMMON)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "earlier", tmp_path / "earlier"))


def _files(folder: Path) -> dict[str, bytes]:
    kept = ("features", "models", "output/digits", "output/posters", "output/candidates", "output/sweeps")
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if name.startswith(kept)}


def test_caches_runs_and_trials_of_an_earlier_version_are_found(earlier: Path, call: Run) -> None:
    before = _files(earlier)
    for options in (DIGITS, POSTERS):
        found = call("features", *options, cwd=earlier)
        assert found.returncode == 0, found.stderr
        assert "nothing to compute" in found.stdout
    for options in (DIGITS, (*DIGITS, "--classifier", "ridge")):
        again = call("train", *options, cwd=earlier)
        assert again.returncode == 0, again.stderr
        assert "is there already" in again.stderr
    swept = call("sweep", *POSTERS, "--grid", "C=0.01,0.1", cwd=earlier)
    assert swept.returncode == 0, swept.stderr
    assert "is there already" in swept.stderr
    assert _files(earlier) == before


def test_runs_of_an_earlier_version_are_shown_and_compared(earlier: Path, call: Run) -> None:
    done = call("report", cwd=earlier)
    assert done.returncode == 0, done.stderr
    page = (earlier / "output" / "index.html").read_text(encoding="utf-8")
    for path in (earlier / "output").glob("*/metrics.json"):
        assert path.parent.name in done.stdout
        assert path.parent.name in page
    assert "warning" not in done.stderr


@pytest.mark.tensorflow
def test_models_of_an_earlier_version_predict_what_they_did(earlier: Path, call: Run) -> None:
    (model,) = (earlier / "models").glob("posters-*.joblib")
    done = call("predict", "--model", model, "posters/affiche", "--format", "csv", cwd=earlier)
    assert done.returncode == 0, done.stderr
    new, old = (
        list(csv.reader(text.splitlines())) for text in (done.stdout, (earlier / "predictions.csv").read_text())
    )
    assert [row[:2] + row[3::2] for row in new] == [row[:2] + row[3::2] for row in old]
    for row, expected in zip(new[1:], old[1:], strict=True):
        assert [float(value) for value in row[2::2]] == pytest.approx(
            [float(value) for value in expected[2::2]], abs=1e-4
        )
