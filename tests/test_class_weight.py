"""`--class-weight balanced`: every class counts alike, in every classifier that can weigh them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, assert_user_error
from sklearn.metrics import balanced_accuracy_score
from test_earlier import POSTERS
from test_stage_two import CLASSES, FAST, array, blobs, options

from pipeline.models import classifiers
from pipeline.selection import protocol
from pipeline.selection.options import TrainOptions

WEIGHING = [name for name, known in classifiers.REGISTRY.items() if known.weighs_classes]


@pytest.mark.parametrize("name", WEIGHING)
def test_rare_classes_are_found_more_often(name: str) -> None:
    test, scores = blobs((300, 300, 300), seed=5), []
    for more in ({}, {"class_weight": "balanced"}):
        data = blobs((600, 40, 40))
        rows = protocol.prepare(data, 0, CLASSES)
        chosen = protocol.select(name, {**options(name, **FAST[name]), **more}, rows, 0).fitted
        assert chosen.params.get("class_weight") == more.get("class_weight")
        model, _ = protocol.refit(name, chosen, data, 0)
        scores.append(balanced_accuracy_score(test.labels, model.predict(array(test))))
    assert scores[1] > scores[0] + 0.03


def test_it_is_part_of_a_runs_name_only_where_it_was_asked_for() -> None:
    assert "class_weight" not in TrainOptions().keyed()
    assert TrainOptions(class_weight="balanced").keyed() == {**TrainOptions().keyed(), "class_weight": "balanced"}


def test_runs_and_sweeps_are_weighted(call: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(Path(__file__).parent / "earlier", tmp_path / "earlier"))
    shutil.rmtree(folder / "output")
    refused = call("train", *POSTERS, "--class-weight", "balanced", "--classifier", "knn", cwd=folder)
    assert_user_error(refused, "knn cannot weigh classes", "logistic, mlp, svm, ridge, kernel")
    swept = call("sweep", *POSTERS, "--class-weight", "balanced", "--grid", "C=0.01,0.1", cwd=folder)
    assert swept.returncode == 0, swept.stderr
    (path,) = (folder / "output").glob("*/metrics.json")
    params = json.loads(path.read_bytes())["classifier"]["params"]
    assert params["class_weight"] == "balanced"
    assert "class_weight=balanced" in (path.parent / "report.txt").read_text()
    found = call("train", *POSTERS, "--class-weight", "balanced", "--C", str(params["C"]), cwd=folder)
    assert "is there already" in found.stderr
    assert np.isfinite(params["C"])
