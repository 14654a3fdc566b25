"""Stage two on small made-up features: choices, histories, pictures, files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from pipeline import classifiers, figures, history, protocol, report
from pipeline.errors import UserError
from pipeline.history import Data
from pipeline.spec import classifier_options

CLASSES = ("ant", "bee", "cat")


def blobs(rows: int, seed: int = 0, columns: int = 12) -> Data:
    """Three overlapping clouds, with columns of very different scale."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    centres = np.random.default_rng(99).standard_normal((3, columns))
    features = centres[labels] + 1.5 * generator.standard_normal((rows, columns))
    return Data((features * np.logspace(-2, 3, columns)).astype(np.float32), labels.astype(np.uint8))


def options(name: str, **given: object) -> dict[str, object]:
    return classifier_options(name, given)


FAST = {"logistic": {}, "mlp": {"hidden_layer_sizes": (8,), "max_epochs": 12, "learning_rate_init": 0.01}}


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_selection_uses_validation_alone(name: str) -> None:
    data = blobs(400)
    before = data.features.copy()
    chosen = protocol.select(name, options(name, **FAST[name]), data, 0, CLASSES)
    np.testing.assert_array_equal(data.features, before)
    losses = [trial["log_loss"] for trial in chosen.trials]
    searched = "C" if name == "logistic" else "alpha"
    best = chosen.trials[int(np.argmin(losses))]
    assert chosen.params[searched] == best[searched]
    assert chosen.validation[0] == pytest.approx(min(losses), rel=0.02)
    again = protocol.select(name, options(name, **FAST[name]), data, 0, CLASSES)
    assert again == chosen, "seeded"


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_history_holds_both_splits_for_every_step(name: str) -> None:
    chosen = protocol.select(name, options(name, **FAST[name]), blobs(300), 0, CLASSES)
    rows = list(csv.DictReader(io.StringIO(chosen.history.to_csv())))
    unit = "iteration" if name == "logistic" else "epoch"
    assert list(rows[0]) == [unit, "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
    assert [int(row[unit]) for row in rows] == list(range(1, len(rows) + 1))
    kept = rows[chosen.history.kept - 1]
    assert float(kept["validation_loss"]) == pytest.approx(chosen.validation[0], abs=1e-6)
    assert float(kept["train_accuracy"]) == pytest.approx(chosen.train[1], abs=1e-6)


def test_the_last_iteration_is_the_fitted_model() -> None:
    data, held_out = blobs(300), blobs(90, seed=1)
    scaler = classifiers.fit_scaler(data.features)
    train = Data(classifiers.standardise(scaler, data.features), data.labels)
    validation = Data(classifiers.standardise(scaler, held_out.features), held_out.labels)
    seen: list[int] = []
    model = classifiers.make("logistic", options("logistic", C=0.1), 0)
    steps = history.fit_iterations(model, train, validation, lambda step: seen.append(step.step))
    assert seen == list(range(1, int(model.n_iter_[0]) + 1))
    last = steps.steps[-1]
    assert last.train_loss == pytest.approx(log_loss(train.labels, model.predict_proba(train.features)), rel=1e-5)
    assert last.validation_accuracy == model.score(validation.features, validation.labels)
    assert last.train_loss < steps.steps[0].train_loss
    plain = LogisticRegression(C=0.1, tol=1e-6, max_iter=2000).fit(train.features, train.labels)
    np.testing.assert_allclose(model.coef_, plain.coef_, atol=0.02)


def test_mlp_keeps_its_best_epoch() -> None:
    data = blobs(200)
    scaler = classifiers.fit_scaler(data.features)
    train = Data(classifiers.standardise(scaler, data.features), data.labels)
    held_out = blobs(100, seed=5)
    validation = Data(classifiers.standardise(scaler, held_out.features), held_out.labels)
    params = options("mlp", hidden_layer_sizes=(64,), alpha=0.0, learning_rate_init=0.02)
    model = classifiers.make("mlp", params, 0)
    steps = history.fit_epochs(model, train, validation, lambda step: None, max_epochs=60, patience=4)
    losses = [step.validation_loss for step in steps.steps]
    assert steps.kept == int(np.argmin(losses)) + 1
    assert len(losses) == steps.kept + 4, "stopped after its patience"
    assert history.scores(model, validation)[0] == pytest.approx(min(losses), rel=1e-6)


def test_scaling_is_scikit_learns_in_float32() -> None:
    data = blobs(9000)
    scaler = classifiers.fit_scaler(data.features)
    expected = (data.features - data.features.mean(0, dtype=np.float64)) / data.features.std(0, dtype=np.float64)
    scaled = classifiers.standardise(scaler, data.features.copy())
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, expected, atol=1e-4)


def test_more_columns_are_regularised_more() -> None:
    for name, sign in (("logistic", 1), ("mlp", -1)):
        key = "C" if name == "logistic" else "alpha"
        few, many = (
            [sign * candidate[key] for candidate in classifiers.candidates(options(name), columns)]
            for columns in (512, 6016)
        )
        assert max(many) < max(few)
        assert many == sorted(many), "most regularised first"
    fixed = classifiers.candidates(options("logistic", C=0.5), 512)
    assert [candidate["C"] for candidate in fixed] == [0.5]


def test_the_split_is_stratified_and_seeded() -> None:
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    fit, held_out = protocol.split(labels, 0, CLASSES)
    assert np.bincount(labels[held_out]).tolist() == [50, 30, 20]
    assert sorted([*fit, *held_out]) == list(range(1000))
    assert (protocol.split(labels, 0, CLASSES)[1] == held_out).all()
    assert (protocol.split(labels, 1, CLASSES)[1] != held_out).any()
    with pytest.raises(UserError, match="Fewer found for: cat"):
        protocol.split(np.array([0, 0, 1, 1, 2]), 0, CLASSES)


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_learning_curve(name: str) -> None:
    params = protocol.select(name, options(name, **FAST[name]), blobs(600), 0, CLASSES).params
    curve = protocol.learning_curve(name, params, blobs(600), 0, CLASSES)
    assert len(curve.sizes) >= 5
    assert curve.sizes[-1] == 540
    assert curve.train.shape == curve.validation.shape == (len(curve.sizes), 3)
    assert not np.isnan(curve.validation).any()
    assert curve.validation[-1].mean() > curve.validation[0].mean()


@pytest.mark.parametrize(("rows", "classes"), [(20, 10), (25, 10), (45_000, 10), (90, 10), (1000, 100)])
def test_curve_sizes_can_be_stratified(rows: int, classes: int) -> None:
    sizes = protocol.curve_sizes(rows, classes)
    assert sizes[-1] == rows
    assert all(classes <= size <= rows - classes for size in sizes[:-1])
    if rows >= 1000:
        assert len(sizes) >= 5


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_the_model_is_a_pipeline_from_raw_features_to_labels(name: str, tmp_path: Path) -> None:
    chosen = protocol.select(name, options(name, **FAST[name]), blobs(600), 0, CLASSES)
    model = protocol.refit(name, chosen.params, blobs(600), 0)
    joblib.dump(model, tmp_path / "m.joblib")
    loaded = joblib.load(tmp_path / "m.joblib")
    test = blobs(300, seed=7)
    assert np.mean(loaded.predict(test.features) == test.labels) > 0.6
    np.testing.assert_allclose(loaded.predict_proba(test.features), model.predict_proba(test.features))
    assert (tmp_path / "m.joblib").stat().st_size < 100_000, "a model must not carry its data"


# --- pictures ---------------------------------------------------------------------------------


def is_png(content: bytes) -> bool:
    return content.startswith(b"\x89PNG") and len(content) > 5000


@pytest.mark.parametrize("count", [1, 2, 40, 400])
def test_history_pictures(count: int) -> None:
    steps = list(range(1, count + 1))
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    curves = {name: list(np.linspace(1, 0.1, count)) for name in names}
    assert is_png(figures.history("epoch", steps, curves, max(1, count // 2), "title", 10))


@pytest.mark.parametrize("classes", [2, 10, 60])
def test_confusion_pictures(classes: int) -> None:
    names = [f"class with a rather long name {index}" for index in range(classes)]
    assert is_png(figures.confusion_matrix(np.eye(classes, dtype=np.int64) * 7, names, "title"))


def test_learning_curve_pictures() -> None:
    scores = np.array([[0.5], [0.6]])
    assert is_png(figures.learning_curve([10, 20], scores, scores, "title"))
    assert is_png(figures.learning_curve([10, 20], scores.repeat(3, axis=1), scores.repeat(3, axis=1), "title"))


# --- what a run leaves ------------------------------------------------------------------------


def contents(created: str) -> dict[str, bytes]:
    return {
        **dict.fromkeys(report.RUN_FILES, b"x"),
        "metrics.json": json.dumps({"run": "r-1", "created": created}).encode(),
    }


def test_a_run_is_found_only_when_it_is_whole(tmp_path: Path) -> None:
    place = report.RunPlace("r-1", tmp_path / "output", tmp_path / "models")
    assert report.find(place) is None
    report.prepare(place)
    report.save(place, contents("now"), b"model", {"created": "now"})
    found = report.find(place)
    assert found is not None
    assert found["created"] == "now"
    description = json.loads(place.description.read_text())
    assert description["run"] == "r-1"
    assert len(description["sha256"]) == 64

    report.save(place, contents("later"), b"another model", {"created": "later"})
    assert report.find(place)["created"] == "later"  # type: ignore[index]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [*report.RUN_FILES, "r-1.joblib", "r-1.json"]
    )

    for path in (place.model, place.folder / "history.csv", place.description, place.folder / "metrics.json"):
        good = path.read_bytes()
        path.write_bytes(b"{}") if path != place.folder / "history.csv" else path.unlink()
        assert report.find(place) is None, path
        path.write_bytes(good)
        assert report.find(place) is not None


def test_halves_of_two_runs_are_no_run(tmp_path: Path) -> None:
    place = report.RunPlace("r-1", tmp_path / "output", tmp_path / "models")
    report.prepare(place)
    report.save(place, contents("now"), b"model", {"created": "now"})
    old = (place.folder / "metrics.json").read_bytes()
    report.save(place, contents("later"), b"model 2", {"created": "later"})
    (place.folder / "metrics.json").write_bytes(old)
    assert report.find(place) is None
