"""Cross-validation: every image scored by what did not see it, whatever was chosen; and what a run says of it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Run, assert_user_error
from sklearn.metrics import balanced_accuracy_score, f1_score
from test_earlier import DIGITS, POSTERS

from pipeline.common.progress import Progress
from pipeline.features.rows import FeatureRows
from pipeline.models import classifiers
from pipeline.models.history import Samples
from pipeline.network.taps import TOP_TAPS
from pipeline.output import metrics
from pipeline.selection import splits
from pipeline.selection.crossval import CrossValidation
from pipeline.selection.options import TrainOptions
from pipeline.selection.trials import Trial


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(Path(__file__).parent / "earlier", tmp_path / "earlier"))
    shutil.rmtree(folder / "output")
    return folder


@pytest.mark.parametrize("name", ["knn", "logistic"])
def test_what_was_seen_is_never_scored(name: str) -> None:
    """The nearest neighbour of a copy is its image: one on the other side, and noise would be learned."""
    generator = np.random.default_rng(0)
    groups = splits.join_groups(generator.permutation(np.repeat(np.arange(120), 3)))
    features = FeatureRows([generator.standard_normal((120, 512)).astype(np.float32)[groups]])
    data = Samples(features, generator.integers(0, 2, 120)[groups], groups, groups)
    values = {"n_neighbors": [1]} if name == "knn" else {"C": [0.1, 10.0]}
    ((tuned, found),) = values.items()
    candidates = [Trial(name, TOP_TAPS, classifiers.resolve(name, {tuned: value}), 0) for value in found]
    with Progress("", 0, "fits") as progress:
        folds = CrossValidation(candidates, data, TOP_TAPS, ("a", "b"), TrainOptions(cv=3, repeats=2), progress)
        rows, probabilities = folds.score()
    assert len(set(groups[rows])) == len(rows) == 120
    assert probabilities.shape == (2, 120, 2)
    np.testing.assert_allclose(probabilities.sum(axis=2), 1, rtol=1e-5)
    assert (probabilities[0] != probabilities[1]).any(), "other folds each time"
    scores = metrics.score(probabilities, data.labels[rows], ("a", "b"), 3)
    low, high = scores.fields["interval"]["test"]
    assert low < 0.5 < high
    assert high - low < 0.28


def test_scores_of_lopsided_rows() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [300, 30, 10])
    probabilities = generator.dirichlet([1, 1, 1], len(labels))
    probabilities[:, 0] += 0.5
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found = metrics.score(probabilities[None], labels, ("a", "b", "c", "none"))
    predicted = probabilities.argmax(axis=1)
    assert found.fields["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found.fields["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found.fields["majority"] == pytest.approx(300 / 340)
    losses = -np.log(probabilities[np.arange(340), labels])
    low, high = found.fields["interval"]["log_loss"]
    error = 1.96 * losses.std() / np.sqrt(340)
    assert (low, high) == pytest.approx((losses.mean() - error, losses.mean() + error), rel=0.05)
    assert metrics.score(probabilities[None], labels, ("a", "b", "c", "none")).fields == found.fields, "seeded"


def test_honest_confidences_are_not_said_to_be_off() -> None:
    """Their measured error is above 0 by chance alone: in 95 % of cases the interval has 0 in it, and else has not."""
    begins: dict[float, list[float]] = {0.0: [], 0.2: []}
    for off, found in begins.items():
        for seed in range(40):
            generator = np.random.default_rng(seed)
            confidences = generator.uniform(0.3, 1, 400)
            right = generator.random(400) < confidences - off
            low, high = metrics.bootstrap_intervals(-np.log(confidences), confidences, right)["calibration"]
            assert low < metrics.calibration(confidences, right)["ece"]
            assert low <= high
            found.append(low)
    assert sum(low == 0 for low in begins[0.0]) >= 36
    assert min(begins[0.2]) > 0
    assert sum(low < 0.2 for low in begins[0.2]) >= 36


def test_the_corrected_interval_is_wider_than_wilsons_and_repeats_narrow_it() -> None:
    wilson, once, often = (
        metrics.wilson_interval(170, 200),
        metrics.cross_validated_interval(0.85, 200, 5, 1),
        metrics.cross_validated_interval(0.85, 200, 5, 10),
    )
    assert once[0] < often[0] < wilson[0] < 0.85 < wilson[1] < often[1] < once[1]
    assert once == pytest.approx(metrics.wilson_interval(0.85 * 200 / 2.25, 200 / 2.25))


def test_a_small_folder_is_cross_validated(call: Run, earlier: Path) -> None:
    flags = (*POSTERS, "--cv", "4", "--repeats", "2")
    done = call("train", *flags, cwd=earlier)
    assert done.returncode == 0, done.stderr
    (path,) = (earlier / "output").glob("*/metrics.json")
    found = json.loads(path.read_bytes())
    assert (found["cross_validation"]["folds"], found["cross_validation"]["repeats"]) == (4, 2)
    assert np.mean(found["cross_validation"]["accuracy"]) == pytest.approx(found["accuracy"]["test"])
    low, high = found["interval"]["test"]
    assert low < found["accuracy"]["test"] <= high
    for text in ("has not been tested as such", "fewer than 10 images of affiche"):
        assert text in (path.parent / "report.txt").read_text()
        assert text.replace("fewer", "Fewer") in next((earlier / "models").glob(f"{path.parent.name}.md")).read_text()
    rows = list(csv.DictReader((path.parent / "predictions.csv").read_text().splitlines()))
    assert [int(row["index"]) for row in rows] == list(range(24))
    assert len({row["file"] for row in rows}) == 24
    assert all(row["file"].startswith(row["label"]) for row in rows)
    assert "is there already" in call("train", *flags, cwd=earlier).stderr

    swept = call("sweep", *POSTERS, "--cv", "4", "--grid", "C=0.01,0.1", cwd=earlier)
    assert swept.returncode == 0, swept.stderr
    assert len(list((earlier / "output").glob("*/metrics.json"))) == 2
    page = (earlier / "output" / "index.html").read_text()
    assert "Cross-validated in 4 folds" in page
    assert page.count("data:image/webp") > 0 or all(row["label"] == row["predicted"] for row in rows)


def test_what_cannot_be_cross_validated_is_explained(call: Run, earlier: Path) -> None:
    assert_user_error(call("train", *POSTERS, "--cv", "1", cwd=earlier), "cv parameter", "at least 2", "Got 1")
    few = call("train", *POSTERS, "--cv", "9", cwd=earlier)
    assert_user_error(few, "at least 9 distinct images", "affiche (8)", "Ask for fewer folds")
    assert_user_error(call("sweep", *POSTERS, "--cv", "9", cwd=earlier), "at least 9 distinct images")
    assert_user_error(call("train", *POSTERS, "--repeats", "2", cwd=earlier), "needs --cv")
    assert not list((earlier / "output").glob("*/metrics.json"))


def test_an_interrupt_leaves_nothing(earlier: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "train", *DIGITS, "--cv", "5", "--repeats", "50"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=earlier, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not (earlier / "output").exists():
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert "Nothing was left half-written" in said
    assert not list((earlier / "output").rglob("*.*"))


def test_the_learning_curve_is_drawn_as_often_as_asked(call: Run, earlier: Path) -> None:
    names = []
    for flags, seeds in ((("--no-learning-curve",), 0), (("--curve-seeds", "1"), 1)):
        done = call("train", *DIGITS, "--C", "0.01", *flags, cwd=earlier)
        assert done.returncode == 0, done.stderr
        names.append(next(line for line in done.stdout.splitlines() if line.startswith("digits-")).split()[0])
        rows = list(csv.DictReader((earlier / "output" / names[-1] / "learning_curve.csv").read_text().splitlines()))
        assert {row["seed"] for row in rows} == {"0"}
        assert (len(rows) == 1) == (seeds == 0)
    assert len(set(names)) == 2
